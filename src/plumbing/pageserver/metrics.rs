//! What the page server counts, for Prometheus.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Upper bounds of the buckets of starts and stops, seconds.
const DURATIONS: [f64; 10] = [0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0, 2.0, 5.0, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Code {
    pub sqlstate: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Branch {
    pub branch: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Direction {
    pub direction: &'static str,
}

/// All counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub instances: Gauge,
    pub connections: Gauge,
    pub connections_total: Counter,
    pub refused: Family<Code, Counter>,
    pub cancels: Counter,
    pub cold_start: Histogram,
    pub stop: Histogram,
    pub anonymous_starts: Counter,
    pub anonymous_refused: Counter,
    pub bytes: Family<Direction, Counter>,
    /// Sealed WAL of each branch's own chain, bytes from its beginning.
    pub sealed: Family<Branch, Gauge<i64>>,
    /// When each branch got its newest snapshot.
    pub snapshot_time: Family<Branch, Gauge<f64, AtomicU64>>,
    pub cache_hits: Family<Branch, Gauge<i64>>,
    pub cache_misses: Family<Branch, Gauge<i64>>,
    /// Completed segments of each branch that wait to be sealed.
    pub unsealed: Family<Branch, Gauge<i64>>,
    /// What is free on the repository's disk, bytes.
    pub disk_free: Gauge,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("zenith");
        let cold_start = Histogram::new(DURATIONS);
        let stop = Histogram::new(DURATIONS);
        let metrics = Metrics {
            cold_start,
            stop,
            instances: Gauge::default(),
            connections: Gauge::default(),
            connections_total: Counter::default(),
            refused: Family::default(),
            cancels: Counter::default(),
            anonymous_starts: Counter::default(),
            anonymous_refused: Counter::default(),
            bytes: Family::default(),
            sealed: Family::default(),
            snapshot_time: Family::default(),
            cache_hits: Family::default(),
            cache_misses: Family::default(),
            unsealed: Family::default(),
            disk_free: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register("instances", "Servers that run", metrics.instances.clone());
        registry.register("connections", "Clients that are connected through the proxy", metrics.connections.clone());
        registry.register("clients", "Clients that came", metrics.connections_total.clone());
        registry.register("refused", "Clients that were sent away", metrics.refused.clone());
        registry.register("cancels", "Requests to cancel a query", metrics.cancels.clone());
        let text = "Time to start a branch's server because a client came";
        registry.register_with_unit("cold_start", text, Unit::Seconds, metrics.cold_start.clone());
        let text = "Time to stop a server that nobody used, with the snapshot that is taken then";
        registry.register_with_unit("stop", text, Unit::Seconds, metrics.stop.clone());
        let text = "Starts and look-ups that a connection caused before it had authenticated";
        registry.register("anonymous_starts", text, metrics.anonymous_starts.clone());
        let text = "Starts and look-ups that were refused since the connection had not authenticated";
        registry.register("anonymous_starts_refused", text, metrics.anonymous_refused.clone());
        registry.register_with_unit("relayed", "Bytes relayed", Unit::Bytes, metrics.bytes.clone());
        let text = "Sealed WAL from the beginning of the branch's history";
        registry.register_with_unit("wal_sealed", text, Unit::Bytes, metrics.sealed.clone());
        let text = "When the branch's newest snapshot was taken, since 1970";
        registry.register_with_unit("snapshot_time", text, Unit::Seconds, metrics.snapshot_time.clone());
        let text = "Frames that a branch's data directory found in its cache";
        registry.register("frame_cache_hits", text, metrics.cache_hits.clone());
        let text = "Frames that a branch's data directory had to inflate";
        registry.register("frame_cache_misses", text, metrics.cache_misses.clone());
        let text = "Completed segments of WAL that are not sealed yet";
        registry.register("wal_unsealed_segments", text, metrics.unsealed.clone());
        let text = "What is free on the disk of the repository";
        registry.register_with_unit("disk_free", text, Unit::Bytes, metrics.disk_free.clone());
        Metrics { registry, ..metrics }
    }
}

impl Metrics {
    /// Returns all of it as text (OpenMetrics).
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("invariant: a string takes everything");
        text
    }
}
