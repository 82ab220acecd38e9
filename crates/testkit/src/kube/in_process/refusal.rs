//! The errors of an API server: `Status` objects.

use serde_json::{Value, json};

/// Why a request is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) details: Value,
}

impl Refusal {
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(super) fn not_found(plural: &str, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{plural} {name:?} not found")).about(plural, name)
    }

    pub(super) fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    pub(super) fn forbidden(plural: &str, name: &str, why: &str) -> Self {
        Self::new(403, "Forbidden", format!("{plural} {name:?} is forbidden: {why}"))
            .about(plural, name)
    }

    pub(super) fn already_exists(plural: &str, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{plural} {name:?} already exists"))
            .about(plural, name)
    }

    pub(super) fn conflict(plural: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {plural} {name:?}: {why}");
        Self::new(409, "Conflict", message).about(plural, name)
    }

    pub(super) fn expired() -> Self {
        Self::new(410, "Expired", "too old resource version")
    }

    /// A 422 from what is wrong where, which must be something.
    pub(super) fn invalid(kind: &str, name: &str, wrong: &[Wrong]) -> Self {
        let all: Vec<_> =
            wrong.iter().map(|wrong| format!("{}: {}", wrong.field, wrong.message)).collect();
        let list = if all.len() == 1 { all.concat() } else { format!("[{}]", all.join(", ")) };
        let mut refusal = Self::new(422, "Invalid", format!("{kind} {name:?} is invalid: {list}"));
        let cause = |wrong: &Wrong| json!({"reason": wrong.reason, "message": wrong.message, "field": wrong.field});
        refusal.details = json!({"name": name, "kind": kind, "causes": wrong.iter().map(cause).collect::<Vec<_>>()});
        refusal
    }

    /// What a failure injected with this code says.
    pub(super) fn injected(code: u16) -> Self {
        let reason = match code {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            409 => "Conflict",
            410 => "Expired",
            415 => "UnsupportedMediaType",
            422 => "Invalid",
            429 => "TooManyRequests",
            500 => "InternalError",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "",
        };
        Self::new(code, reason, "injected by the test")
    }

    pub(super) fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }

    fn about(mut self, plural: &str, name: &str) -> Self {
        self.details = json!({"name": name, "kind": plural});
        self
    }
}

/// One thing that is wrong with an object.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) field: String,
    reason: &'static str,
    message: String,
}

impl Wrong {
    pub(super) fn required(field: impl Into<String>) -> Self {
        Self { field: field.into(), reason: "FieldValueRequired", message: "Required value".into() }
    }

    pub(super) fn forbidden(field: impl Into<String>, why: &str) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueForbidden",
            message: format!("Forbidden: {why}"),
        }
    }

    pub(super) fn invalid(field: impl Into<String>, value: &str, why: &str) -> Self {
        let message = format!("Invalid value: {value:?}: {why}");
        Self { field: field.into(), reason: "FieldValueInvalid", message }
    }
}
