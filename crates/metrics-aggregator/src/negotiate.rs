//! Which format and encoding a scraper gets.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};

use crate::exposition::Format;

/// The answer to a scrape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Value of the `Content-Type` header.
    pub content_type: &'static str,
    /// Value of the `Content-Encoding` header, if the body is encoded.
    pub content_encoding: Option<&'static str>,
    /// The body.
    pub body: Vec<u8>,
}

pub(crate) fn respond(
    accept: Option<&str>,
    accept_encoding: Option<&str>,
    render: impl FnOnce(Format) -> String,
) -> Response {
    let format = format(accept);
    let text = render(format).into_bytes();
    let compressed = accept_encoding.is_some_and(accepts_gzip).then(|| gzip(&text)).flatten();
    let content_encoding = compressed.is_some().then_some("gzip");
    Response {
        content_type: format.content_type(),
        content_encoding,
        body: compressed.unwrap_or(text),
    }
}

/// Versions of the text format, and of `OpenMetrics`, that read what is written.
const VERSIONS: [&str; 3] = ["0.0.4", "0.0.1", "1.0.0"];

/// The format that the scraper prefers; text if it names none.
fn format(accept: Option<&str>) -> Format {
    let preference = |media_type| {
        let weights = accept
            .into_iter()
            .flat_map(|accept| accept.split(','))
            .filter_map(|item| weight(item, media_type));
        weights.fold(0.0, f32::max)
    };
    let open_metrics = preference("application/openmetrics-text");
    if open_metrics > 0.0 && open_metrics >= preference("text/plain") {
        Format::OpenMetrics
    } else {
        Format::Text
    }
}

fn accepts_gzip(accept_encoding: &str) -> bool {
    accept_encoding.split(',').filter_map(|item| weight(item, "gzip")).any(|weight| weight > 0.0)
}

/// Weight of an item of an `Accept…` header, if it names `wanted` in a version
/// that is known.
fn weight(item: &str, wanted: &str) -> Option<f32> {
    let mut parts = item.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case(wanted) {
        return None;
    }
    let mut weight = 1.0;
    for part in parts {
        match part.split_once('=') {
            Some(("q", value)) => weight = value.trim().parse().unwrap_or(0.0),
            Some(("version", version)) if !VERSIONS.contains(&version.trim()) => return None,
            _ => {}
        }
    }
    Some(weight)
}

fn gzip(text: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 16), Compression::fast());
    // Writing to memory cannot fail; if it did, plain text would be right too.
    encoder.write_all(text).ok()?;
    encoder.finish().ok()
}
