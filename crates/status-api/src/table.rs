//! The status as text: one line a container, columns as wide as they need.

use jiff::Timestamp;

use crate::{
    Message, Output,
    api::{Container, Degraded, Removed, Resources, Status},
};

/// A table whose columns keep their width from the first line to the last.
#[derive(Debug)]
pub(crate) struct Table {
    wide: bool,
    widths: Vec<usize>,
}

/// Name of a column, and whether only a wide table has it.
const COLUMNS: [(&str, bool); 11] = [
    ("NAMESPACE", false),
    ("POD", false),
    ("CONTAINER", false),
    ("PHASE", false),
    ("FOR", false),
    ("CHECKPOINT", true),
    ("RESTORE", false),
    ("WAKE-UPS", false),
    ("FAILURES", true),
    ("SCALED DOWN", true),
    ("GIVES BACK", false),
];

impl Table {
    /// A table with room for what `status` holds.
    pub(crate) fn new(output: Output, status: &Status) -> Self {
        let wide = output == Output::Wide;
        let mut widths: Vec<usize> = COLUMNS.iter().map(|(name, _)| name.len()).collect();
        for container in &status.containers {
            for (width, cell) in widths.iter_mut().zip(cells(container, status.at)) {
                *width = (*width).max(cell.chars().count());
            }
        }
        Self { wide, widths }
    }

    /// What is wrong, all containers, and their sums.
    pub(crate) fn whole(&self, status: &Status) -> String {
        let mut text = degraded(&status.degraded);
        if status.containers.is_empty() {
            text += &["No zeropod containers on ", &printable(&status.node), ".\n"].concat();
            return text;
        }
        text.push_str(&self.line(&COLUMNS.map(|(name, _)| name.to_owned())));
        for container in &status.containers {
            text.push_str(&self.line(&cells(container, status.at)));
        }
        text + &sums(status)
    }

    /// The lines that a message of the stream adds.
    pub(crate) fn news(&self, message: &Message) -> String {
        match message {
            Message::Snapshot(status) => self.whole(status),
            Message::Change(change) => self.line(&cells(&change.container, change.at)),
            Message::Removed(Removed { namespace, pod, container }) => {
                let mut cells = COLUMNS.map(|_| String::new());
                cells[..4].clone_from_slice(&[namespace, pod, container, "GONE"].map(printable));
                self.line(&cells)
            }
            Message::Degraded(now) if now.is_empty() => "All is well again.\n".into(),
            Message::Degraded(now) => degraded(now),
        }
    }

    fn line(&self, cells: &[String; COLUMNS.len()]) -> String {
        let cells: Vec<String> = cells
            .iter()
            .zip(&self.widths)
            .zip(COLUMNS)
            .filter(|(_, (_, only_wide))| self.wide || !only_wide)
            .map(|((cell, width), _)| format!("{cell:<width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    }
}

fn cells(container: &Container, at: Timestamp) -> [String; COLUMNS.len()] {
    let failures = container.checkpoint_failures + container.restore_failures;
    [
        printable(&container.namespace),
        printable(&container.pod),
        printable(&container.container),
        printable(&container.phase),
        container.since.map_or_else(none, |since| duration(at.duration_since(since).as_secs_f64())),
        container.last_checkpoint.map_or_else(none, |last| duration(last.seconds)),
        container.last_restore.map_or_else(none, |last| duration(last.seconds)),
        container.wake_ups.to_string(),
        failures.to_string(),
        duration(container.scaled_down_seconds),
        resources(container.gives_back),
    ]
}

fn degraded(degraded: &[Degraded]) -> String {
    let line = |Degraded { name, detail, unready }: &Degraded| {
        let severity = if *unready { "NOT READY" } else { "DEGRADED" };
        format!("{severity}  {}: {}\n", printable(name), printable(detail))
    };
    degraded.iter().map(line).collect::<Vec<_>>().concat()
}

fn sums(status: &Status) -> String {
    let totals = &status.totals;
    format!(
        "{}: {} of {} scaled down, {} wake-ups, {} failures, gives back {}\n",
        printable(&status.node),
        totals.scaled_down,
        totals.containers,
        totals.wake_ups,
        totals.checkpoint_failures + totals.restore_failures,
        resources(Some(totals.gives_back)),
    )
}

/// `12ms`, `3.4s`, `5m12s`, `7h3m` or `12d4h`: three digits are enough.
fn duration(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "negative ones become 0, and absurd ones the largest"
    )]
    let whole = seconds.max(0.0) as u64;
    match whole {
        0 => format!("{:.0}ms", seconds.max(0.0) * 1000.0),
        1..10 => format!("{seconds:.1}s"),
        10..60 => format!("{whole}s"),
        60..3600 => format!("{}m{}s", whole / 60, whole % 60),
        3600..86_400 => format!("{}h{}m", whole / 3600, whole % 3600 / 60),
        _ => format!("{}d{}h", whole / 86_400, whole % 86_400 / 3600),
    }
}

fn resources(given: Option<Resources>) -> String {
    let Some(Resources { cpu_cores, memory_bytes }) = given else { return none() };
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mebibytes = memory_bytes as f64 / f64::from(1 << 20);
    format!("{:.0}m/{mebibytes:.0}Mi", cpu_cores * 1000.0)
}

fn none() -> String {
    "-".into()
}

/// Without what would move the cursor of a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_take_three_digits() {
        for (seconds, text) in [
            (-5.0, "0ms"),
            (0.0, "0ms"),
            (0.0123, "12ms"),
            (3.44, "3.4s"),
            (12.9, "12s"),
            (312.0, "5m12s"),
            (25_380.0, "7h3m"),
            (1_051_200.0, "12d4h"),
            (f64::NAN, "0ms"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn resources_are_in_the_units_of_pod_specs() {
        assert_eq!(resources(None), "-");
        let given = Resources { cpu_cores: 0.25, memory_bytes: 128 << 20 };
        assert_eq!(resources(Some(given)), "250m/128Mi");
    }

    #[test]
    fn terminal_codes_are_not_printed() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
    }
}
