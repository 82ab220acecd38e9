//! Scrapes as Prometheus makes them: one connection, kept open.

use std::{
    fmt,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    time::{Duration, Instant},
};

use zeropod_testkit::node_in_a_box::METRICS_PORT;

/// A connection to the manager.
pub(crate) struct Scraper {
    stream: TcpStream,
    answer: Vec<u8>,
    chunk: Box<[u8]>,
}

/// How long scrapes took, and how large the last page was.
pub(crate) struct Times {
    bytes: usize,
    median: Duration,
    p99: Duration,
}

impl Scraper {
    pub(crate) fn connect() -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, METRICS_PORT))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self { stream, answer: Vec::with_capacity(4 << 20), chunk: vec![0; 64 << 10].into() })
    }

    /// Scrapes that often, from the first byte of the request to the last of
    /// the page.
    pub(crate) fn times(&mut self, scrapes: usize, encoding: &str) -> io::Result<Times> {
        let mut times = Vec::with_capacity(scrapes);
        let mut bytes = 0;
        for _ in 0..scrapes {
            let start = Instant::now();
            bytes = self.scrape(encoding)?;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        let at = |percent: usize| times.get(times.len() * percent / 100).copied();
        let [median, p99] = [50, 99].map(|percent| at(percent).unwrap_or_default());
        Ok(Times { bytes, median, p99 })
    }

    /// Returns the length of the page.
    fn scrape(&mut self, encoding: &str) -> io::Result<usize> {
        let request = format!(
            "GET /metrics HTTP/1.1\r\nhost: manager\r\naccept-encoding: {encoding}\r\n\r\n"
        );
        self.stream.write_all(request.as_bytes())?;
        self.answer.clear();
        let mut end = None;
        while end.is_none_or(|(_, end)| self.answer.len() < end) {
            let read = self.stream.read(&mut self.chunk)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.answer.extend_from_slice(&self.chunk[..read]);
            if end.is_none() {
                end = page(&self.answer);
            }
        }
        Ok(end.map_or(0, |(start, end)| end - start))
    }
}

/// Where the body of an answer starts and ends, once its head is there.
fn page(answer: &[u8]) -> Option<(usize, usize)> {
    let start = answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&answer[..start]).ok()?;
    let length: usize =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())?;
    Some((start, start + length))
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, median, p99 } = self;
        write!(f, "{} kB median {median:.2?}, p99 {p99:.2?}", bytes / 1000)
    }
}
