//! Figures in the two text formats that Prometheus reads.
//!
//! What differs between them: OpenMetrics names a family of counters without the `_total` that its
//! samples have, and ends with `# EOF`.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::{AdminCounters, TextFormat};
use crate::histogram::Histogram;
use crate::io::DatagramStatistics;
use crate::peer::{Figure, FigureKind};

/// Tells one sample of a family from the others.
pub type Labels = Vec<(&'static str, String)>;

/// Samples of one name. Counters' names end in `_total`, as they are shown.
#[derive(Clone, Debug)]
pub struct Family {
    /// The whole name.
    pub name: &'static str,
    /// What it is, in one sentence.
    pub help: &'static str,
    /// The numbers.
    pub samples: Samples,
}

/// The numbers of a family.
#[derive(Clone, Debug)]
pub enum Samples {
    /// They only grow while the process lives.
    Counters(Vec<(Labels, f64)>),
    /// They go up and down.
    Gauges(Vec<(Labels, f64)>),
    /// How often something took how long, in seconds.
    Histograms(Vec<(Labels, Histogram)>),
}

impl Samples {
    fn metric_type(&self) -> MetricType {
        match self {
            Self::Counters(_) => MetricType::Counter,
            Self::Gauges(_) => MetricType::Gauge,
            Self::Histograms(_) => MetricType::Histogram,
        }
    }
}

/// A number of events or bytes as the formats have it.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "the formats know floating point numbers only")]
pub fn number(count: u64) -> f64 {
    count as f64
}

impl Family {
    /// One counter.
    #[must_use]
    pub fn counter(name: &'static str, help: &'static str, count: u64) -> Self {
        Self { name, help, samples: Samples::Counters(vec![(Vec::new(), number(count))]) }
    }

    /// One gauge.
    #[must_use]
    pub fn gauge(name: &'static str, help: &'static str, count: u64) -> Self {
        Self { name, help, samples: Samples::Gauges(vec![(Vec::new(), number(count))]) }
    }

    /// Puts figures of the same name together; those of one name are of one kind.
    #[must_use]
    pub fn of_figures(figures: Vec<Figure>) -> Vec<Self> {
        let mut families: BTreeMap<&'static str, Self> = BTreeMap::new();
        for Figure { name, help, kind, labels, value } in figures {
            let help = help.trim_end_matches('.');
            let family = families.entry(name).or_insert_with(|| {
                let samples = match kind {
                    FigureKind::Counter => Samples::Counters(Vec::new()),
                    FigureKind::Gauge => Samples::Gauges(Vec::new()),
                };
                Self { name, help, samples }
            });
            if let Samples::Counters(samples) | Samples::Gauges(samples) = &mut family.samples {
                samples.push((labels, value));
            }
        }
        families.into_values().collect()
    }
}

impl AdminCounters {
    /// What the admin door tells of itself.
    #[must_use]
    pub fn families(&self) -> Vec<Family> {
        let counter = Family::counter;
        vec![
            counter(
                "kadring_admin_connections_total",
                "Connections to the admin door",
                self.connections,
            ),
            counter(
                "kadring_admin_connections_refused_total",
                "Of these, closed because there were too many",
                self.connections_refused,
            ),
            counter(
                "kadring_admin_connections_late_total",
                "Of these, closed because they were too slow",
                self.connections_late,
            ),
            counter("kadring_admin_requests_total", "Requests to the admin door", self.requests),
        ]
    }
}

impl DatagramStatistics {
    /// What became of datagrams, for /metrics.
    #[must_use]
    pub fn families(&self) -> Vec<Family> {
        let counter = Family::counter;
        vec![
            counter("kadring_datagrams_received_total", "Datagrams received", self.received),
            counter("kadring_datagrams_too_long_total", "Dropped: too long", self.truncated),
            counter(
                "kadring_datagram_pauses_total",
                "How often receiving paused, because all buffers were in use",
                self.starved,
            ),
            counter(
                "kadring_datagrams_overflowed_total",
                "Dropped by the kernel: not received in time",
                self.overflowed,
            ),
            counter("kadring_datagrams_sent_total", "Datagrams given to the kernel", self.sent),
            counter(
                "kadring_datagrams_unsendable_total",
                "Refused by the kernel: too long, no route, or the like",
                self.send_failed,
            ),
            counter(
                "kadring_datagrams_unsent_total",
                "Not given to the kernel: too much was waiting",
                self.send_dropped,
            ),
        ]
    }
}

/// The media type of a format.
pub(super) fn content_type(format: TextFormat) -> &'static str {
    match format {
        TextFormat::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        TextFormat::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
    }
}

/// Writes all families in a format.
#[must_use]
pub fn encode_families(families: &[Family], format: TextFormat) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Report { families: families.to_vec(), format }));
    let mut text = String::new();
    let written = match format {
        TextFormat::Prometheus => encode_registry(&mut text, &registry),
        TextFormat::OpenMetrics => encode(&mut text, &registry),
    };
    written.expect("a string takes whatever is written to it");
    text
}

#[derive(Debug)]
struct Report {
    families: Vec<Family>,
    format: TextFormat,
}

impl Collector for Report {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Family { name, help, samples } in &self.families {
            // The library names counters as OpenMetrics does, and adds `_total` to samples.
            let is_open = self.format == TextFormat::OpenMetrics;
            let family = match samples {
                Samples::Counters(_) if is_open => name.strip_suffix("_total").unwrap_or(name),
                _ => name,
            };
            let metric = encoder.encode_descriptor(family, help, None, samples.metric_type())?;
            encode_samples(metric, samples, is_open)?;
        }
        Ok(())
    }
}

fn encode_samples(mut metric: MetricEncoder<'_>, samples: &Samples, is_open: bool) -> fmt::Result {
    match samples {
        Samples::Counters(samples) if is_open => {
            for (labels, value) in samples {
                labelled(&mut metric, labels, |sample| {
                    sample.encode_counter::<NoLabelSet, _, f64>(value, None)
                })?;
            }
        }
        Samples::Counters(samples) | Samples::Gauges(samples) => {
            for (labels, value) in samples {
                labelled(&mut metric, labels, |sample| sample.encode_gauge(value))?;
            }
        }
        Samples::Histograms(samples) => {
            for (labels, histogram) in samples {
                let (sum, count) = (histogram.sum_seconds(), histogram.count());
                let buckets: Vec<(f64, u64)> = histogram.buckets().collect();
                labelled(&mut metric, labels, |sample| {
                    sample.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
                })?;
            }
        }
    }
    Ok(())
}

/// Encodes a sample with its labels, and without brackets if it has none.
fn labelled(
    metric: &mut MetricEncoder<'_>,
    labels: &Labels,
    encode: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    if labels.is_empty() { encode(metric) } else { encode(&mut metric.encode_family(labels)?) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn families() -> Vec<Family> {
        let mut histogram = Histogram::default();
        histogram.record(75_000);
        let figures = vec![
            Figure::gauge("peers", "Peers", 3).with("state", "up"),
            Figure::counter("lookups_total", "Lookups", 7),
            Figure::gauge("peers", "Peers", 1).with("state", "a\"b\\c\nd"),
        ];
        let mut families = vec![
            Family::counter("puts_total", "Puts", 5),
            Family {
                name: "wait_seconds",
                help: "Waits",
                samples: Samples::Histograms(vec![(vec![("kind", "read".to_owned())], histogram)]),
            },
        ];
        families.extend(Family::of_figures(figures));
        families
    }

    #[test]
    fn open_metrics_names_families_of_counters_without_their_ending() {
        let text = encode_families(&families(), TextFormat::OpenMetrics);
        assert!(text.starts_with("# HELP puts Puts\n# TYPE puts counter\nputs_total 5"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
        assert!(text.contains("# TYPE lookups counter\nlookups_total 7"), "{text}");
    }

    #[test]
    fn prometheus_names_families_as_their_samples() {
        let text = encode_families(&families(), TextFormat::Prometheus);
        assert!(
            text.starts_with("# HELP puts_total Puts\n# TYPE puts_total counter\nputs_total 5")
        );
        assert!(!text.contains("EOF"), "{text}");
    }

    #[test]
    fn samples_of_a_name_stand_together_with_their_labels_escaped() {
        let text = encode_families(&families(), TextFormat::Prometheus);
        let peers = "# TYPE peers gauge\npeers{state=\"up\"} 3.0\n\
                     peers{state=\"a\\\"b\\\\c\\nd\"} 1.0\n";
        assert!(text.contains(peers), "{text}");
    }

    #[test]
    fn buckets_of_a_histogram_add_up() {
        let text = encode_families(&families(), TextFormat::Prometheus);
        for line in [
            "wait_seconds_sum{kind=\"read\"} 0.000075\n",
            "wait_seconds_count{kind=\"read\"} 1\n",
            "wait_seconds_bucket{le=\"0.00005\",kind=\"read\"} 0\n",
            "wait_seconds_bucket{le=\"0.0001\",kind=\"read\"} 1\n",
            "wait_seconds_bucket{le=\"+Inf\",kind=\"read\"} 1\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
