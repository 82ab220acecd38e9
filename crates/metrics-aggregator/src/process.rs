//! The process itself, under the names that every Prometheus client gives to
//! it. What `/proc` does not tell is left out.

use std::{
    fs,
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::exposition::{Exposition, Kind};

/// Clock ticks per second in `/proc`; the same on every Linux (`USER_HZ`).
const TICKS: f64 = 100.0;

const CPU: (&str, Kind, &str) =
    ("process_cpu_seconds_total", Kind::Counter, "Processor time used.");
const RESIDENT: (&str, Kind, &str) =
    ("process_resident_memory_bytes", Kind::Gauge, "Memory in use that is not swapped out.");
const OPEN_FDS: (&str, Kind, &str) = ("process_open_fds", Kind::Gauge, "File descriptors in use.");
const MAX_FDS: (&str, Kind, &str) =
    ("process_max_fds", Kind::Gauge, "File descriptors that may be in use.");
const START: (&str, Kind, &str) =
    ("process_start_time_seconds", Kind::Gauge, "When the process started, in seconds since 1970.");

/// Read once: nobody changes it.
static LIMIT: OnceLock<Option<f64>> = OnceLock::new();

pub(crate) fn render(start: SystemTime, to: &mut Exposition) {
    let mut write = |(name, kind, help): (&str, Kind, &str), value: Option<f64>| {
        if let Some(value) = value {
            let family = to.family(name, kind, help);
            to.sample(&family, "", value);
        }
    };
    write(CPU, cpu_seconds());
    write(RESIDENT, resident_bytes());
    write(OPEN_FDS, open_fds());
    write(MAX_FDS, *LIMIT.get_or_init(max_fds));
    write(START, start.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs_f64()));
}

pub(crate) fn documentation() -> impl Iterator<Item = (&'static str, Kind, &'static str)> {
    [CPU, RESIDENT, OPEN_FDS, MAX_FDS, START].into_iter()
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program may hold spaces; user and system time are the
    // 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS)
}

fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024.0)
}

fn open_fds() -> Option<f64> {
    // Since Linux 6.2 (commit f1f1f2569901) the size is the count.
    let count = match fs::metadata("/proc/self/fd").ok()?.len() {
        0 => fs::read_dir("/proc/self/fd").ok()?.count().try_into().ok()?,
        count => u32::try_from(count).ok()?,
    };
    Some(count.into())
}

fn max_fds() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;

    #[test]
    fn everything_is_known_on_linux() {
        let before = open_fds().unwrap();
        let _file = fs::File::open("/proc/self/stat").unwrap();
        // Other tests open and close files meanwhile.
        assert!(open_fds().unwrap() >= 3.0, "{before}");
        assert!(resident_bytes().unwrap() > 100_000.0);
        assert!(max_fds().unwrap() >= before);
        let mut exposition = Exposition::new(Format::Text, 0);
        render(SystemTime::now(), &mut exposition);
        let text = exposition.finish();
        for (name, ..) in documentation() {
            assert!(text.contains(&format!("\n{name} ")), "{name} is missing in {text}");
        }
    }
}
