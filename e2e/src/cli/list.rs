//! `holdfast list`.
use super::args::ListArgs;
use super::exit::Exit;
use super::run::scenarios_folder;
use crate::scenario::catalogue;

/// Prints name, labels and purpose of each scenario chosen.
///
/// # Errors
/// If the catalogue cannot be read.
pub fn list(args: &ListArgs) -> anyhow::Result<Exit> {
    let all = catalogue(&scenarios_folder())?;
    let chosen: Vec<_> = all
        .iter()
        .filter(|s| args.names.is_empty() || args.names.iter().any(|part| s.name.contains(part.as_str())))
        .filter(|s| args.labels.iter().all(|label| s.labels.contains(label)))
        .collect();
    for scenario in &chosen {
        println!(
            "{:<40} {:<28} {}",
            scenario.name,
            scenario.labels.join(","),
            scenario.why
        );
    }
    Ok(if chosen.is_empty() {
        Exit::NothingSelected
    } else {
        Exit::Passed
    })
}
