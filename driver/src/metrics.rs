//! What is counted about calls, for /metrics.
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tonic::codegen::http;
use tonic::{Code, Status};
use tower::{Layer, Service};

/// Upper ends of the buckets of a call's time, in seconds: from a look to a copy.
const SECONDS: [f64; 10] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0, 10.0, 60.0];
/// Methods beyond these count as one: a caller may make up names.
const SERVICES: [&str; 4] = [
    "/csi.v1.",
    "/grpc.health.",
    "/grpc.reflection.",
    "/pluginregistration.",
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    method: String,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: String,
}

/// What is found when somebody asks, not counted before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// Volumes with a record that can be read.
    pub volumes: u64,
    /// Bytes promised to them.
    pub bytes: u64,
    /// Files in quarantine, and records that will go there.
    pub quarantined: u64,
}

/// The counters of a process.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    calls: Family<Ended, Counter>,
    seconds: Family<Method, Histogram>,
    in_flight: Gauge,
    volumes: Gauge<u64, AtomicU64>,
    bytes: Gauge<u64, AtomicU64>,
    quarantined: Gauge<u64, AtomicU64>,
    recovered: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("holdfast");
        let metrics = Self {
            registry: Arc::default(),
            calls: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            in_flight: Gauge::default(),
            volumes: Gauge::default(),
            bytes: Gauge::default(),
            quarantined: Gauge::default(),
            recovered: Counter::default(),
        };
        registry.register(
            "calls",
            "Calls answered, by method and code",
            metrics.calls.clone(),
        );
        registry.register(
            "call_seconds",
            "Time of a call, by method",
            metrics.seconds.clone(),
        );
        registry.register(
            "calls_in_flight",
            "Calls not answered yet",
            metrics.in_flight.clone(),
        );
        registry.register("volumes", "Volumes in the data folder", metrics.volumes.clone());
        registry.register(
            "promised_bytes",
            "Bytes promised to volumes",
            metrics.bytes.clone(),
        );
        registry.register(
            "quarantined",
            "Files set aside, and records that cannot be read",
            metrics.quarantined.clone(),
        );
        registry.register(
            "recovered",
            "Volumes that a crash cut off and that were finished or undone",
            metrics.recovered.clone(),
        );
        *metrics.registry.lock().unwrap_or_else(PoisonError::into_inner) = registry;
        metrics
    }
}

impl Metrics {
    /// One more volume was recovered.
    pub fn count_recovered(&self) {
        self.recovered.inc();
    }

    /// Everything, in the text form of OpenMetrics.
    pub fn text(&self, found: Found) -> String {
        self.volumes.set(found.volumes);
        self.bytes.set(found.bytes);
        self.quarantined.set(found.quarantined);
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

impl<S> Layer<S> for Metrics {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured {
            inner,
            metrics: self.clone(),
        }
    }
}

/// A service whose calls are counted.
#[derive(Clone, Debug)]
pub struct Measured<S> {
    inner: S,
    metrics: Metrics,
}

/// A call that runs; one that is dropped unanswered was cancelled by its caller.
#[derive(Debug)]
struct Running {
    metrics: Metrics,
    method: String,
    since: Instant,
    code: Code,
}

impl Drop for Running {
    fn drop(&mut self) {
        let method = std::mem::take(&mut self.method);
        self.metrics.in_flight.dec();
        let seconds = self.metrics.seconds.get_or_create(&Method {
            method: method.clone(),
        });
        seconds.observe(self.since.elapsed().as_secs_f64());
        drop(seconds);
        let code = name(self.code);
        self.metrics.calls.get_or_create(&Ended { method, code }).inc();
    }
}

impl<S, B, R> Service<http::Request<B>> for Measured<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path();
        let known = SERVICES.iter().any(|service| path.starts_with(service));
        let method = path.rsplit('/').next().filter(|_| known).unwrap_or("other");
        self.metrics.in_flight.inc();
        let running = Running {
            metrics: self.metrics.clone(),
            method: method.to_owned(),
            since: Instant::now(),
            code: Code::Cancelled,
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            // The whole of it, so that it is dropped with this future.
            let mut running = running;
            let answer = answer.await;
            // An error is told in the headers; a reply has none there, its trailer says OK.
            running.code = match &answer {
                Ok(response) => Status::from_header_map(response.headers()).map_or(Code::Ok, |s| s.code()),
                Err(_) => Code::Unknown,
            };
            answer
        })
    }
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
