//! What the answers of the API server mean for a write.

use std::{error::Error as StdError, time::Duration};

use kube::{client::Body, core::Status};
use thiserror::Error;

use crate::plan::RefusalReason;

/// Why a write was not done. The message does not repeat the source.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum WriteError {
    /// The pod is gone, or another one has its name.
    #[error("the pod is gone")]
    Gone,
    /// An object of that name is there already.
    #[error("it exists already")]
    Exists,
    /// Someone else wrote at the same time.
    #[error("conflict with another write")]
    Conflict,
    /// The server has too much to do.
    #[error("throttled by the API server for {0:?}")]
    Throttled(Duration),
    /// The server will say the same the next time.
    #[error("refused by the API server ({}): {message}", reason.as_str())]
    Refused {
        /// What its rule is about.
        reason: RefusalReason,
        /// Its words.
        message: String,
    },
    /// We may not.
    #[error("not allowed: {0}")]
    Forbidden(String),
    /// It did not answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// It did not answer at all, or only that it can't serve now.
    #[error("API server unreachable: {0}")]
    Unreachable(String),
    /// It answered with an error of its own.
    #[error("API server failed: {0}")]
    Failed(String),
}

impl WriteError {
    /// The value of the label `result` of the writes metric.
    pub(crate) fn result(&self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Exists => "exists",
            Self::Conflict => "conflict",
            Self::Throttled(_) => "throttled",
            Self::Refused { .. } => "refused",
            Self::Forbidden(_) => "forbidden",
            Self::Timeout(_) => "timeout",
            Self::Unreachable(_) => "unreachable",
            Self::Failed(_) => "error",
        }
    }
}

/// The body of a successful answer.
pub(crate) async fn body(response: http::Response<Body>) -> Result<Vec<u8>, WriteError> {
    let (parts, body) = response.into_parts();
    // A broken connection: whether the write was done is not known.
    let bytes = body.collect_bytes().await.map_err(|error| WriteError::Failed(chain(&error)))?;
    if parts.status.is_success() {
        return Ok(bytes.into());
    }
    // Throttling is answered in plain text, from before the API itself.
    let header = parts.headers.get(http::header::RETRY_AFTER);
    let retry_after = header.and_then(|value| value.to_str().ok()?.parse().ok());
    let status = serde_json::from_slice::<Status>(&bytes).unwrap_or_else(|_| Status {
        message: String::from_utf8_lossy(&bytes).chars().take(512).collect(),
        ..Status::default()
    });
    Err(classify(parts.status.as_u16(), retry_after, status))
}

/// What an error of the client means: an answer that it has read, or none.
pub(crate) fn error(error: kube::Error) -> WriteError {
    match error {
        kube::Error::Api(status) => classify(status.code, None, *status),
        other => WriteError::Unreachable(chain(&other)),
    }
}

fn classify(code: u16, retry_after: Option<u32>, status: Status) -> WriteError {
    let Status { message, reason, .. } = status;
    match code {
        404 | 410 => WriteError::Gone,
        409 if reason == "AlreadyExists" => WriteError::Exists,
        409 => WriteError::Conflict,
        429 => {
            // Within reason: a proxy's day-long ban must not be believed.
            let seconds = retry_after.unwrap_or(1).clamp(1, 60);
            WriteError::Throttled(Duration::from_secs(seconds.into()))
        }
        503 => WriteError::Unreachable(message),
        403 => forbidden(message),
        401 => WriteError::Forbidden(message),
        // The kubelet has not reported the resources of a container that has
        // just been started. It will, without another generation.
        422 if message.contains("without support for resize") => WriteError::Failed(message),
        // The uid in our patches is the pod's own: another pod has its name.
        422 if message.contains("metadata.uid") => WriteError::Gone,
        400..=499 => WriteError::Refused { reason: RefusalReason::Invalid, message },
        _ => WriteError::Failed(format!("{code} {message}")),
    }
}

/// A missing permission, a quota, a `LimitRange` and an admission rule all
/// answer 403; only their words differ.
fn forbidden(message: String) -> WriteError {
    let refused = |reason, message| WriteError::Refused { reason, message };
    if message.contains(" cannot patch resource ") || message.contains(" cannot create resource ") {
        WriteError::Forbidden(message)
    } else if message.contains("exceeded quota") {
        refused(RefusalReason::Quota, message)
    } else if message.contains(" usage per ") {
        refused(RefusalReason::LimitRange, message)
    } else {
        refused(RefusalReason::Admission, message)
    }
}

/// The error with its causes. `kube` says only the outermost.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_words() {
        let forbidden = |rest: &str| format!(r#"pods "web" is forbidden: {rest}"#);
        let rbac = forbidden(r#"User "x" cannot patch resource "pods/resize" in API group """#);
        for (code, reason, message, expected) in [
            (404, "NotFound", "", "gone"),
            (410, "Gone", "", "gone"),
            (409, "AlreadyExists", "", "exists"),
            (409, "Conflict", "", "conflict"),
            (429, "", "Too many requests", "throttled"),
            (401, "Unauthorized", "", "forbidden"),
            (403, "Forbidden", &rbac, "forbidden"),
            (403, "Forbidden", &forbidden("exceeded quota: q, requested: requests.cpu=1"), "quota"),
            (
                403,
                "Forbidden",
                &forbidden("minimum cpu usage per Container is 10m, but request is 1m"),
                "limit-range",
            ),
            (403, "Forbidden", &forbidden("denied by policy"), "admission"),
            (422, "Invalid", "metadata.uid: Invalid value: field is immutable", "gone"),
            (
                422,
                "Invalid",
                "spec: Forbidden: Pod running on node without support for resize",
                "error",
            ),
            (422, "Invalid", "spec: Invalid value: Pod QOS Class may not change", "invalid"),
            (400, "BadRequest", "", "invalid"),
            (500, "InternalError", "failed calling webhook", "error"),
            (503, "ServiceUnavailable", "", "unreachable"),
            (504, "Timeout", "", "error"),
        ] {
            let status = Status::failure(message, reason);
            let error = classify(code, None, status);
            let got = match &error {
                WriteError::Refused { reason, .. } => reason.as_str(),
                error => error.result(),
            };
            assert_eq!(got, expected, "{code} {message}");
        }
    }

    #[test]
    fn retry_after_within_reason() {
        for (asked, granted) in [(None, 1), (Some(0), 1), (Some(7), 7), (Some(86_400), 60)] {
            assert_eq!(
                classify(429, asked, Status::default()),
                WriteError::Throttled(Duration::from_secs(granted))
            );
        }
    }
}
