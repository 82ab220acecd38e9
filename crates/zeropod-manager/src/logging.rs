//! Logs on standard output: text on a terminal, else one JSON object a line
//! with the keys that the Go manager uses, `time`, `level` and `msg`, and the
//! fields of the message beside them.

use std::{
    fmt,
    io::{self, IsTerminal as _},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use clap::ValueEnum;
use serde_json::{Map, Value};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer as _, Registry,
    filter::Targets,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{FmtSpan, Writer},
    },
    layer::SubscriberExt as _,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt as _,
};

/// Sets up the logs of this process.
pub(crate) fn init(level: LogLevel) -> Logs {
    let (filter, handle) = reload::Layer::new(targets(level));
    let format = tracing_subscriber::fmt::layer().with_span_events(FmtSpan::NONE);
    let layer = if io::stdout().is_terminal() {
        format.compact().with_target(false).boxed()
    } else {
        format.event_format(Json).boxed()
    };
    // Fails only when a subscriber is set already, which then is as good.
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
    Logs { handle, level: Arc::new(Mutex::new(level)) }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// What failed for good.
    Error,
    /// And what is wrong.
    Warn,
    /// And what happened.
    Info,
    /// And how; of other crates what happened.
    Debug,
    /// Everything.
    Trace,
}

/// The logs, to change them while the process runs.
#[derive(Debug, Clone)]
pub(crate) struct Logs {
    handle: reload::Handle<Targets, Registry>,
    level: Arc<Mutex<LogLevel>>,
}

impl Logs {
    /// How much is logged now.
    pub(crate) fn level(&self) -> LogLevel {
        *self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs more or less from now on.
    pub(crate) fn set(&self, level: LogLevel) {
        // Fails only when there is no subscriber any more.
        if self.handle.reload(targets(level)).is_ok() {
            *self.level.lock().unwrap_or_else(PoisonError::into_inner) = level;
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        <Self as ValueEnum>::from_str(text, false)
    }
}

/// Other crates log less: what they do is seldom the question.
fn targets(level: LogLevel) -> Targets {
    let (own, others) = match level {
        LogLevel::Error => (Level::ERROR, Level::ERROR),
        LogLevel::Warn => (Level::WARN, Level::WARN),
        LogLevel::Info => (Level::INFO, Level::WARN),
        LogLevel::Debug => (Level::DEBUG, Level::INFO),
        LogLevel::Trace => (Level::TRACE, Level::DEBUG),
    };
    Targets::new().with_default(others).with_target("zeropod", own)
}

struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Line(Map::new());
        line.0.insert("time".into(), jiff::Timestamp::now().to_string().into());
        line.0.insert("level".into(), event.metadata().level().as_str().into());
        event.record(&mut line);
        writeln!(writer, "{}", Value::Object(line.0))
    }
}

struct Line(Map<String, Value>);

impl Line {
    fn insert(&mut self, field: &Field, value: impl Into<Value>) {
        let name = match field.name() {
            "message" => "msg",
            name => name,
        };
        self.0.insert(name.into(), value.into());
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let causes = std::iter::successors(Some(value), |error| error.source());
        let chain: Vec<_> = causes.map(ToString::to_string).collect();
        self.insert(field, chain.join(": "));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_has_the_keys_of_the_go_manager() {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let layer =
            tracing_subscriber::fmt::layer().event_format(Json).with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(pid = 7, ok = true, path = %"/x", "say \"hi\"");
        });
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["msg"], "say \"hi\"");
        assert_eq!(
            (&line["pid"], &line["ok"], &line["path"]),
            (&7.into(), &true.into(), &"/x".into())
        );
        line["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    }
}
