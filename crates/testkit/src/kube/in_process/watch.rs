//! Watches: one line of JSON per change, until the client or the time is gone.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use axum::body::{Body, Bytes};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    http::Server,
    refusal::Refusal,
    resources::Resource,
    selector::Selector,
    store::{Change, Store},
};

/// What open watches wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Signal {
    /// Counts changes to the store.
    pub(super) changes: u64,
    /// Counts how often all watches were cut.
    pub(super) cuts: u64,
}

/// What a client asked to be told.
pub(super) struct Wish {
    pub(super) resource: &'static Resource,
    pub(super) namespace: Option<String>,
    pub(super) selector: Selector,
    /// Changes after this version; none starts with what there is.
    pub(super) since: Option<u64>,
    /// Whether the end of what there is at the start is to be marked.
    pub(super) mark_initial: bool,
    pub(super) bookmarks: bool,
    pub(super) timeout: Duration,
}

/// The body of the answer to a watch.
pub(super) fn body(server: Arc<Server>, wish: Wish) -> Body {
    let signal = server.signal.subscribe();
    let cuts = signal.borrow().cuts;
    let deadline = Instant::now() + wish.timeout;
    let mut watch = Watch {
        server,
        wish,
        signal,
        cuts,
        deadline,
        seen: 0,
        lines: VecDeque::new(),
        over: false,
    };
    watch.begin();
    Body::from_stream(stream::unfold(watch, |mut watch| async {
        Some((watch.next().await?, watch))
    }))
}

struct Watch {
    server: Arc<Server>,
    wish: Wish,
    signal: watch::Receiver<Signal>,
    cuts: u64,
    deadline: Instant,
    seen: u64,
    lines: VecDeque<Bytes>,
    over: bool,
}

impl Watch {
    fn begin(&mut self) {
        let server = Arc::clone(&self.server);
        let store = server.store();
        self.seen = self.wish.since.unwrap_or_else(|| store.version());
        if self.wish.since.is_some() {
            return;
        }
        for (_, object) in store.list(self.wish.resource, self.wish.namespace.as_deref()) {
            if self.wish.selector.matches(object) {
                self.lines.push_back(line("ADDED", object));
            }
        }
        if self.wish.mark_initial {
            let mark = json!({"k8s.io/initial-events-end": "true"});
            self.lines.push_back(self.bookmark(&mark));
        }
    }

    async fn next(&mut self) -> Option<Result<Bytes, io::Error>> {
        loop {
            if self.signal.borrow_and_update().cuts != self.cuts {
                self.over = true;
                self.cuts = self.signal.borrow().cuts;
                return Some(Err(io::Error::other("cut by the test")));
            }
            if let Some(line) = self.lines.pop_front() {
                return Some(Ok(line));
            }
            if self.over {
                return None;
            }
            self.look();
            if !self.lines.is_empty() {
                continue;
            }
            tokio::select! {
                changed = self.signal.changed() => changed.ok()?,
                () = sleep_until(self.deadline) => {
                    self.over = true;
                    if self.wish.bookmarks {
                        self.lines.push_back(self.bookmark(&Value::Null));
                    }
                }
            }
        }
    }

    /// Takes over what changed since the last look.
    fn look(&mut self) {
        let server = Arc::clone(&self.server);
        let store: &Store = &server.store();
        match store.since(self.seen) {
            Ok(changes) => self.lines.extend(changes.filter_map(|change| told(&self.wish, change))),
            Err(refusal) => {
                self.lines.push_back(line("ERROR", &refusal.to_status()));
                self.over = true;
            }
        }
        self.seen = store.version();
    }

    fn bookmark(&self, annotations: &Value) -> Bytes {
        let metadata = json!({"resourceVersion": self.seen.to_string(), "creationTimestamp": null, "annotations": annotations});
        line(
            "BOOKMARK",
            &json!({"kind": self.wish.resource.kind, "apiVersion": "v1", "metadata": metadata}),
        )
    }
}

/// How a change looks to someone who sees only what the selector lets through.
fn told(wish: &Wish, change: &Change) -> Option<Bytes> {
    let visible = |object: &&Arc<Value>| {
        let namespace = object["metadata"]["namespace"].as_str();
        change.resource == wish.resource
            && wish.namespace.as_deref().is_none_or(|wanted| Some(wanted) == namespace)
            && wish.selector.matches(object)
    };
    match (change.old.as_ref().filter(visible), change.new.as_ref().filter(visible)) {
        (None, None) => None,
        (None, Some(new)) => Some(line("ADDED", new)),
        (Some(_), Some(new)) => Some(line("MODIFIED", new)),
        (Some(old), None) => {
            // The last state that was visible, at the version that hid it.
            let mut gone = Value::clone(change.new.as_deref().unwrap_or(old));
            gone["metadata"]["resourceVersion"] = change.version.to_string().into();
            Some(line("DELETED", &gone))
        }
    }
}

fn line(what: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({"type": what, "object": object})).into()
}

/// Reads the `resourceVersion` of a query; 0 and none mean "any".
pub(super) fn version(text: &str) -> Result<Option<u64>, Refusal> {
    match text {
        "" | "0" => Ok(None),
        _ => text.parse().map(Some).map_err(|_| {
            Refusal::bad_request(format!(
                "Invalid value: {text:?}: strconv.ParseUint: invalid syntax"
            ))
        }),
    }
}
