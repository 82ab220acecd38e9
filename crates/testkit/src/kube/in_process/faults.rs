//! What clients asked, and failures that a test orders.

use std::{collections::VecDeque, time::Duration};

use serde_json::Value;

/// A request as it came in.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// `GET`, `PATCH` ...
    pub method: String,
    /// Path without the query, such as `/api/v1/namespaces/ns/pods/web/resize`.
    pub path: String,
    /// The query as sent, empty if there was none.
    pub query: String,
    /// Media type of the body, empty if there was none.
    pub content_type: String,
    /// The body; null if it was empty or no JSON.
    pub body: Value,
    /// What was answered; 0 while nothing was, or never.
    pub status: u16,
}

impl Request {
    /// Whether it can change something: neither `GET` nor `HEAD`.
    pub fn is_write(&self) -> bool {
        !matches!(self.method.as_str(), "GET" | "HEAD")
    }
}

/// Which requests a fault is for.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct On {
    method: Option<String>,
    path: Option<String>,
}

impl On {
    /// All of them.
    pub fn any() -> Self {
        Self::default()
    }

    /// Those with a method, such as `PATCH`.
    pub fn method(method: &str) -> Self {
        Self { method: Some(method.into()), path: None }
    }

    /// Of these, only those whose path contains `part`.
    pub fn path(mut self, part: &str) -> Self {
        self.path = Some(part.into());
        self
    }

    fn matches(&self, method: &str, path: &str) -> bool {
        self.method.as_ref().is_none_or(|wanted| wanted == method)
            && self.path.as_ref().is_none_or(|part| path.contains(part.as_str()))
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done; the answer is a `Status` with this code.
    Status(u16),
    /// Nothing is done; the answer is 429 with a `Retry-After` header.
    TooManyRequests {
        /// Seconds in that header.
        retry_after_seconds: u32,
    },
    /// It is done, but only after a while.
    Delay(Duration),
    /// Nothing is done and no answer comes.
    Hang,
    /// Nothing is done; the connection breaks.
    Close,
    /// It is done, but the connection breaks before the answer is whole.
    ApplyThenClose,
}

/// Requests so far and faults to come.
#[derive(Debug, Default)]
pub(super) struct Journal {
    requests: VecDeque<Request>,
    /// How many were dropped from the front.
    forgotten: usize,
    faults: Vec<(On, usize, Fault)>,
}

impl Journal {
    const KEPT: usize = 100_000;

    /// Notes a request; returns what to call it by in [`Journal::answered`].
    pub(super) fn note(&mut self, request: Request) -> usize {
        if self.requests.len() == Self::KEPT {
            self.requests.pop_front();
            self.forgotten += 1;
        }
        self.requests.push_back(request);
        self.forgotten + self.requests.len() - 1
    }

    pub(super) fn answered(&mut self, number: usize, status: u16) {
        let place = number.checked_sub(self.forgotten);
        if let Some(request) = place.and_then(|place| self.requests.get_mut(place)) {
            request.status = status;
        }
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.iter().cloned().collect()
    }

    pub(super) fn forget(&mut self) {
        self.forgotten += self.requests.len();
        self.requests.clear();
    }

    pub(super) fn inject(&mut self, on: On, times: usize, fault: Fault) {
        self.faults.push((on, times, fault));
    }

    pub(super) fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// The oldest fault that is for this request, used up once.
    pub(super) fn fault(&mut self, method: &str, path: &str) -> Option<Fault> {
        let place = self.faults.iter().position(|(on, _, _)| on.matches(method, path))?;
        let (_, times, fault) = &mut self.faults[place];
        let fault = *fault;
        *times = times.saturating_sub(1);
        if *times == 0 {
            drop(self.faults.remove(place));
        }
        Some(fault)
    }
}
