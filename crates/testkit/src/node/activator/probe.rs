//! Telling the kubelet's probes from traffic by the first bytes of a
//! connection.

/// Answer to an HTTP probe; the container stays scaled down.
pub(super) const ANSWER: &[u8] =
    b"HTTP/1.1 204 No Content\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// What the first bytes of a connection say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not enough yet to tell.
    Unclear,
    /// An HTTP probe of the kubelet.
    Probe,
    /// Anything else.
    Traffic,
}

/// Looks for an HTTP request whose user agent starts with `kube-probe/`, in
/// what has arrived of at most `limit` bytes.
pub(super) fn classify(bytes: &[u8], limit: usize) -> Verdict {
    let looked_at = &bytes[..bytes.len().min(limit)];
    let complete = looked_at.windows(4).any(|window| window == b"\r\n\r\n");
    let mut lines = looked_at.split(|byte| *byte == b'\n');
    let request = lines.next().unwrap_or_default();
    if looked_at.len() > request.len() && !is_request(request) {
        return Verdict::Traffic;
    }
    if lines.any(is_probe_header) {
        return Verdict::Probe;
    }
    let text = looked_at.iter().all(|byte| byte.is_ascii_graphic() || b" \t\r\n".contains(byte));
    if complete || !text || looked_at.len() == limit { Verdict::Traffic } else { Verdict::Unclear }
}

fn is_request(line: &[u8]) -> bool {
    line.trim_ascii_end().ends_with(b"HTTP/1.1") || line.trim_ascii_end().ends_with(b"HTTP/1.0")
}

/// A part of the value is enough, but the whole of the prefix must be there.
fn is_probe_header(line: &[u8]) -> bool {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else { return false };
    line[..colon].eq_ignore_ascii_case(b"user-agent")
        && line[colon + 1..].trim_ascii_start().starts_with(b"kube-probe/")
}

#[cfg(test)]
mod tests {
    use super::{Verdict::*, *};

    #[test]
    fn only_whole_user_agents_of_requests_are_probes() {
        let probe = "GET /healthz HTTP/1.1\r\nHost: x\r\nUser-Agent: kube-probe/1.34\r\n\r\n";
        for (bytes, verdict) in [
            ("", Unclear),
            ("GET / HT", Unclear),
            ("GET / HTTP/1.1\r\nHost: x\r\nUser-Age", Unclear),
            (probe, Probe),
            ("get / HTTP/1.0\r\nuser-agent:kube-probe/", Probe),
            ("GET / HTTP/1.1\r\nUser-Agent: curl/8 kube-probe/1\r\n\r\n", Traffic),
            ("GET / HTTP/1.1\r\nX: y\r\n\r\nUser-Agent: curl", Traffic),
            ("\x16\x03\x01", Traffic),
            ("SSH-2.0-x\r\nUser-Agent: kube-probe/1\r\n", Traffic),
        ] {
            assert_eq!(classify(bytes.as_bytes(), 1024), verdict, "{bytes:?}");
        }
        // Beyond the limit nothing is looked at.
        assert_eq!(classify(probe.as_bytes(), 40), Traffic);
    }
}
