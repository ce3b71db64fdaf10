//! Names each step while it runs, and its time when it is over; plain lines where there is no terminal.
use std::io::{BufRead, IsTerminal, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Where steps are shown.
#[derive(Clone, Debug)]
pub struct Progress {
    bars: Option<MultiProgress>,
    quiet: bool,
    times: Arc<Mutex<Vec<(String, Duration)>>>,
}

/// A step that runs; dropped before it is done, it counts as failed.
#[derive(Debug)]
pub struct Step {
    name: String,
    since: Instant,
    bar: Option<ProgressBar>,
    progress: Progress,
    over: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            bars: std::io::stderr().is_terminal().then(MultiProgress::new),
            quiet: false,
            times: Arc::default(),
        }
    }
}

impl Progress {
    /// One that shows nothing, for tests.
    pub fn quiet() -> Self {
        Self {
            bars: None,
            quiet: true,
            times: Arc::default(),
        }
    }

    /// Shows that a step has begun.
    pub fn step(&self, name: &str) -> Step {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.set_message(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() && !self.quiet {
            eprintln!("  ...      {name}");
        }
        Step {
            name: name.to_owned(),
            since: Instant::now(),
            bar,
            progress: self.clone(),
            over: false,
        }
    }

    /// One line beside the steps.
    pub fn note(&self, line: &str) {
        match &self.bars {
            Some(bars) => drop(bars.println(line)),
            None if self.quiet => {}
            None => eprintln!("{line}"),
        }
    }

    /// Every step that is done, with its time, in the order of their ends.
    pub fn times(&self) -> Vec<(String, Duration)> {
        self.times.lock().map(|times| times.clone()).unwrap_or_default()
    }
}

/// Asks whoever sits at the terminal; without one the answer is no.
pub fn consents(question: &str) -> bool {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return false;
    }
    let mut answer = String::new();
    eprint!("{question} [y/N] ");
    std::io::stderr().flush().is_ok()
        && std::io::stdin().lock().read_line(&mut answer).is_ok()
        && matches!(answer.trim(), "y" | "Y" | "yes")
}

impl Step {
    /// The step is over; its time is shown and kept.
    pub fn done(mut self) {
        self.end("");
    }

    fn end(&mut self, verdict: &str) {
        let took = self.since.elapsed();
        self.over = true;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.progress
            .note(&format!("  {:6.1} s {}{verdict}", took.as_secs_f64(), self.name));
        if let Ok(mut times) = self.progress.times.lock() {
            times.push((self.name.clone(), took));
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.over {
            self.end(" (failed)");
        }
    }
}
