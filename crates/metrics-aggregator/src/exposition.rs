//! The text formats of Prometheus.

use std::fmt::Write as _;

use metrics_exporter_prometheus::formatting;

use crate::histogram::{BOUNDS, Histogram};

/// A format of Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Text format 0.0.4.
    Text,
    /// `OpenMetrics` 1.0.0.
    OpenMetrics,
}

impl Format {
    /// Value of the `Content-Type` header.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    #[default]
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// An exposition being written. Each family is written once, as a whole.
///
/// A node has tens of thousands of lines, most of them buckets: each is put
/// together from few pieces, without going through the formatting of std.
#[derive(Debug)]
pub(crate) struct Exposition {
    text: String,
    format: Format,
    /// What follows the other labels of a bucket, such as `le="0.1"} `.
    bounds: Vec<String>,
}

/// Name of a family, by [`Exposition::family`].
pub(crate) struct Family(String);

impl Exposition {
    /// `capacity` is a guess at the length of the whole.
    pub(crate) fn new(format: Format, capacity: usize) -> Self {
        let bounds = BOUNDS.iter().map(|(_, label)| *label).chain(["+Inf"]).map(|bound| {
            // Canonical there, and what Go's client writes.
            let whole = format == Format::OpenMetrics && !bound.contains(['.', 'I']);
            format!("le=\"{bound}{}\"}} ", if whole { ".0" } else { "" })
        });
        Self { text: String::with_capacity(capacity), format, bounds: bounds.collect() }
    }

    /// Starts a family. `name` is that of its samples.
    pub(crate) fn family(&mut self, name: &str, kind: Kind, help: &str) -> Family {
        let name = formatting::sanitize_metric_name(name);
        let family = match (self.format, kind) {
            // OpenMetrics names the family without the suffix of its samples.
            (Format::OpenMetrics, Kind::Counter) => name.strip_suffix("_total").unwrap_or(&name),
            _ => &name,
        };
        if !help.is_empty() {
            let help = match self.format {
                Format::Text => formatting::sanitize_description(help),
                // Quotes need escaping as well.
                Format::OpenMetrics => formatting::sanitize_label_value(help),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(self.text, "# HELP {family} {help}");
        }
        formatting::write_type_line(&mut self.text, family, None, None, kind.as_str());
        Family(name)
    }

    /// Writes a sample. `labels` is from [`labels`].
    pub(crate) fn sample(&mut self, family: &Family, labels: &str, value: impl Value) {
        self.name(family, "", labels);
        value.write(&mut self.text);
        self.text.push('\n');
    }

    /// Writes the samples of a histogram.
    pub(crate) fn histogram(&mut self, family: &Family, labels: &str, histogram: &impl Histogram) {
        let start = self.text.len();
        self.text.push_str(&family.0);
        self.text.push_str("_bucket{");
        self.text.push_str(labels);
        if !labels.is_empty() {
            self.text.push(',');
        }
        let head = start..self.text.len();
        let mut total = 0;
        for (number, (bound, count)) in self.bounds.iter().zip(histogram.counts()).enumerate() {
            if number > 0 {
                self.text.extend_from_within(head.clone());
            }
            total += count;
            self.text.push_str(bound);
            total.write(&mut self.text);
            self.text.push('\n');
        }
        self.name(family, "_sum", labels);
        histogram.sum().write(&mut self.text);
        self.text.push('\n');
        self.name(family, "_count", labels);
        total.write(&mut self.text);
        self.text.push('\n');
    }

    pub(crate) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    /// Writes what stands before a value.
    fn name(&mut self, family: &Family, suffix: &str, labels: &str) {
        self.text.push_str(&family.0);
        self.text.push_str(suffix);
        if !labels.is_empty() {
            self.text.push('{');
            self.text.push_str(labels);
            self.text.push('}');
        }
        self.text.push(' ');
    }
}

/// A number that can stand in an exposition.
pub(crate) trait Value {
    fn write(self, to: &mut String);
}

impl Value for u64 {
    fn write(self, to: &mut String) {
        to.push_str(itoa::Buffer::new().format(self));
    }
}

impl Value for f64 {
    fn write(self, to: &mut String) {
        if self.is_infinite() {
            to.push_str(if self > 0.0 { "+Inf" } else { "-Inf" });
        } else {
            // Writing to a string cannot fail.
            let _ = write!(to, "{self}");
        }
    }
}

/// Labels as they stand between the braces.
pub(crate) fn labels<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (key, value) in labels {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&formatting::sanitize_label_key(key));
        text.push_str("=\"");
        text.push_str(&formatting::sanitize_label_value(value));
        text.push('"');
    }
    text
}
