//! Formats and encodings by the headers of the scraper.

use std::io::Read as _;

use flate2::read::GzDecoder;
use zeropod_metrics_aggregator::{Aggregator, Format};

use crate::common::Container;

fn text() -> &'static str {
    Format::Text.content_type()
}

/// F-H4: what Go's client answers, except that it knows protobuf as well.
#[test]
fn the_format_is_the_one_that_the_scraper_prefers() {
    let open_metrics = Format::OpenMetrics.content_type();
    let aggregator = Aggregator::new();
    for (accept, wanted) in [
        (None, text()),
        (Some("*/*"), text()),
        (Some("text/plain"), text()),
        (Some("text/html, application/json"), text()),
        (Some("application/openmetrics-text"), open_metrics),
        (Some("Application/OpenMetrics-Text; version=0.0.1"), open_metrics),
        (Some("application/openmetrics-text; version=2.0.0, text/plain"), text()),
        (Some("application/openmetrics-text; q=0, */*"), text()),
        (Some("application/openmetrics-text;q=0.3, text/plain;q=0.4"), text()),
        // Prometheus 2.42.
        (
            Some(
                "application/openmetrics-text;version=1.0.0,\
                 application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            ),
            open_metrics,
        ),
        // Prometheus 3 with protobuf preferred, and then OpenMetrics.
        (
            Some(
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;\
                 encoding=delimited;q=0.7,\
                 application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 application/openmetrics-text;version=0.0.1;q=0.5,\
                 text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                 text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            ),
            open_metrics,
        ),
        (Some(";;q=,,=\u{0}"), text()),
    ] {
        let answer = aggregator.respond(accept, None);
        assert_eq!(answer.content_type, wanted, "{accept:?}");
        let ends = answer.body.ends_with(b"\n# EOF\n");
        assert_eq!(ends, wanted == open_metrics, "{accept:?}");
    }
}

#[test]
fn the_body_is_compressed_for_whom_understands_it() {
    let aggregator = Aggregator::new();
    for (accept_encoding, encoding) in [
        (None, None),
        (Some(""), None),
        (Some("identity"), None),
        (Some("gzip;q=0"), None),
        (Some("br, deflate"), None),
        (Some("gzip"), Some("gzip")),
        (Some("deflate, GZIP ; q=0.5"), Some("gzip")),
    ] {
        let answer = aggregator.respond(None, accept_encoding);
        assert_eq!(answer.content_encoding, encoding, "{accept_encoding:?}");
        let mut body = String::new();
        if encoding.is_some() {
            GzDecoder::new(&*answer.body).read_to_string(&mut body).unwrap();
        } else {
            body = String::from_utf8(answer.body).unwrap();
        }
        assert!(body.contains("# TYPE zeropod_running gauge\n"), "{body}");
    }
}

/// Where `OpenMetrics` differs from the text format.
#[test]
fn open_metrics_has_rules_of_its_own() {
    let aggregator = Aggregator::new();
    let mut web = Container::new("abc.sock", "web-0");
    aggregator.apply(&web.event(zeropod_shim_api::status::Phase::Running, None));
    let text = aggregator.render(Format::Text);
    let open_metrics = aggregator.render(Format::OpenMetrics);
    for (here, there) in [
        (
            "# TYPE zeropod_restore_errors_total counter\n",
            "# TYPE zeropod_restore_errors counter\n",
        ),
        (",le=\"1\"} 0\n", ",le=\"1.0\"} 0\n"),
        (",le=\"10\"} 0\n", ",le=\"10.0\"} 0\n"),
    ] {
        assert!(text.contains(here) && !text.contains(there), "{text}");
        assert!(open_metrics.contains(there) && !open_metrics.contains(here), "{open_metrics}");
    }
    for same in [",le=\"0.5\"} 0\n", ",le=\"+Inf\"} 0\n", "\nzeropod_restore_errors_total{"] {
        assert!(text.contains(same) && open_metrics.contains(same), "{same}");
    }
}
