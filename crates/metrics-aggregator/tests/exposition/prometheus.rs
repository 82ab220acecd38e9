//! The parsers that count: `promtool`, and a Prometheus server that scrapes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use zeropod_metrics_aggregator::{Aggregator, Format};
use zeropod_shim_api::status::Phase;
use zeropod_testkit::{cache, skip};

use crate::common::{Container, operation};

const DEADLINE: Duration = Duration::from_mins(1);

/// An aggregator that has seen something of everything.
fn aggregator() -> Aggregator {
    let aggregator = Aggregator::new();
    for pod in ["web-0", "web-1"] {
        let mut container = Container::new("abc.sock", pod);
        aggregator.apply(&container.event(Phase::ScaledDown, Some(operation(250))));
        aggregator.apply(&container.event(Phase::RestoreFailed, None));
        aggregator.apply(&container.event(Phase::Running, Some(operation(45))));
    }
    metrics::with_local_recorder(&aggregator.recorder(), || {
        metrics::describe_counter!("zeropod_test_total", "A \\\"test\\\" with \\\\ and\nnewline.");
        metrics::counter!("zeropod_test_total", "kind" => "a\"b\\c\nd").increment(2);
        metrics::describe_gauge!("zeropod_test_level", "A level.");
        metrics::gauge!("zeropod_test_level").set(f64::INFINITY);
        metrics::describe_histogram!("zeropod_test_seconds", "A time.");
        metrics::histogram!("zeropod_test_seconds").record(0.3);
    });
    aggregator
}

/// F-H4: the text is correct, and by Prometheus' conventions.
#[test]
fn promtool_finds_nothing_to_complain_about() {
    let Some(bin) = prometheus() else { return };
    let mut promtool = Command::new(bin.join("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = aggregator().render(Format::Text);
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let Output { status, stdout, stderr } = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
    assert!(status.success() && said.is_empty(), "{status}: {said}\n{text}");
}

/// A server scrapes `OpenMetrics`, compressed, and reads the same numbers; what
/// has ended goes stale.
#[test]
fn a_prometheus_server_scrapes_it() {
    let Some(bin) = prometheus() else { return };
    let aggregator = aggregator();
    let target = Target::start(aggregator.clone());
    let server = Server::start(&bin, target.address);

    let labels = r#"{container="app",namespace="default",pod="web-0"}"#;
    for (query, wanted) in [
        ("up", "1"),
        (&*format!("zeropod_running{labels}"), "1"),
        (&*format!("zeropod_checkpoint_duration_seconds_count{labels}"), "1"),
        (&*format!("zeropod_checkpoint_duration_seconds_sum{labels}"), "0.25"),
        ("sum(zeropod_restore_duration_seconds_bucket{le='0.05'})", "2"),
        ("sum(zeropod_restore_duration_seconds_bucket{le='10.0'})", "2"),
        ("sum(zeropod_restore_errors_total)", "2"),
        ("count(zeropod_last_checkpoint_time > 1.7e18)", "2"),
        ("zeropod_restores_total{outcome='failure'}", "2"),
        (r#"zeropod_test_total{kind="a\"b\\c\nd"}"#, "2"),
        ("zeropod_test_level", "+Inf"),
        ("sum(zeropod_test_seconds_bucket{le='0.3'})", "1"),
        ("count(process_resident_memory_bytes > 100000)", "1"),
    ] {
        server.until(query, Some(wanted));
    }
    let requests = target.requests.lock().unwrap().join("\n").to_ascii_lowercase();
    assert!(requests.contains("accept: application/openmetrics-text"), "{requests}");
    assert!(requests.contains("accept-encoding: gzip"), "{requests}");

    let gone = Container::new("abc.sock", "web-0");
    aggregator.apply(&gone.change(zeropod_shim_api::change::Cause::Removed));
    server.until(&format!("zeropod_running{labels}"), None);
    server.until("sum(zeropod_running)", Some("1"));
}

/// Serves an aggregator over HTTP, one request at a time.
struct Target {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Target {
    fn start(aggregator: Aggregator) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming() {
                answer(&aggregator, &stream.unwrap(), &seen);
            }
        });
        Self { address, requests }
    }
}

fn answer(aggregator: &Aggregator, mut stream: &TcpStream, seen: &Mutex<Vec<String>>) {
    let request: Vec<String> = BufReader::new(stream)
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let header = |name: &str| {
        request.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let answer = aggregator.respond(header("accept"), header("accept-encoding"));
    let encoding = answer
        .content_encoding
        .map_or_else(String::new, |encoding| format!("Content-Encoding: {encoding}\r\n"));
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {}\r\n{encoding}Content-Length: {}\r\n\
         Connection: close\r\n\r\n",
        answer.content_type,
        answer.body.len()
    );
    // A scraper that has gone away asks again.
    let _ = stream.write_all(&[head.into_bytes(), answer.body].concat());
    seen.lock().unwrap().extend(request);
}

/// A Prometheus server, killed when dropped.
struct Server {
    process: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start(bin: &Path, target: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("prometheus.yml");
        let text = format!(
            "global: {{ scrape_interval: 200ms, scrape_timeout: 200ms }}\n\
             scrape_configs:\n\
             - job_name: zeropod\n  static_configs: [{{ targets: ['{target}'] }}]\n"
        );
        fs::write(&config, text).unwrap();
        // Free a moment ago; nobody else here asks for ports by number.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let process = Command::new(bin.join("prometheus"))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { process, address, _dir: dir }
    }

    /// Waits until a query has this one value, or none.
    fn until(&self, query: &str, wanted: Option<&str>) {
        let start = Instant::now();
        loop {
            let now = self.query(query);
            let values = now.as_ref().and_then(|answer| answer["data"]["result"].as_array());
            let right = values.is_some_and(|values| match wanted {
                Some(wanted) => values.len() == 1 && values[0]["value"][1] == wanted,
                None => values.is_empty(),
            });
            if right {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "{query} is not {wanted:?}: {now:#?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// `None` while the server is not up yet.
    fn query(&self, query: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        let mut request = String::from("GET /api/v1/query?query=");
        for byte in query.bytes() {
            write!(request, "%{byte:02x}").ok()?;
        }
        request.push_str(" HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut response = String::new();
        stream.read_to_string(&mut response).ok()?;
        serde_json::from_str(response.split_once("\r\n\r\n")?.1).ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails when it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Directory of Debian's `prometheus` and `promtool`, unpacked and not
/// installed, because the package would start a server of its own. `None`,
/// having said so, where there is no Debian to get it from.
fn prometheus() -> Option<PathBuf> {
    if Command::new("apt-get").arg("--version").output().is_err() {
        skip::skip("apt-get is needed to fetch Debian's prometheus");
        return None;
    }
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    };
    let build = |draft: &Path| {
        run(Command::new("apt-get").args(["download", "prometheus"]).current_dir(draft))?;
        let package = fs::read_dir(draft).ok().and_then(|mut files| files.next()?.ok());
        let package = package.ok_or("apt-get downloaded nothing")?.path();
        run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(draft))?;
        fs::remove_file(package).map_err(|error| error.to_string())
    };
    let check = |place: &Path| {
        run(Command::new(place.join("usr/bin/prometheus")).arg("--version"))?;
        run(Command::new(place.join("usr/bin/promtool")).arg("--version"))
    };
    match cache::entry("prometheus", std::env::consts::ARCH, build, check) {
        Ok(place) => Some(place.join("usr/bin")),
        Err(error) => {
            skip::skip(&format!("no prometheus: {error}"));
            None
        }
    }
}
