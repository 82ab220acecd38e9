//! What is remembered of the writes to one pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime},
};

use serde_json::Value;
use zeropod_shim_api::id::ContainerId;

use super::retry::Retry;
use crate::{
    plan::{Metadata, Refusal, Resize},
    pod::Pending,
};

/// Shortest and longest time to the next try of a pod whose write failed.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_mins(1));
/// How long refused labels and annotations rest.
const REFUSED_METADATA_REST: Duration = Duration::from_mins(1);
/// How long a refused restore rests. The container does with less than it
/// asked for meanwhile, so that it is asked for again.
const REFUSED_RESTORE_REST: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Work {
    /// Uid of the pod that all of this is about.
    pub(super) uid: Box<str>,
    /// A write is under way. There is never more than one.
    pub(super) busy: bool,
    /// The most urgent queue it is in.
    pub(super) queued: Option<Queue>,
    /// No write before, after failures.
    pub(super) not_before: Option<Instant>,
    failures: u32,
    /// Since when no shim has a container of that name.
    pub(super) absent: BTreeMap<Box<str>, Instant>,
    /// Containers that were stopped, by the id they had.
    pub(super) stopped: BTreeMap<Box<str>, ContainerId>,
    /// Containers of an offline migration that will start scaled down.
    pub(super) preset: Option<Preset>,
    /// Label changes and scale-downs of containers that must not come again
    /// before that time.
    recent: Vec<(Kind, Box<str>, Instant)>,
    refused: BTreeMap<Kind, Refused>,
    /// Refusals that were counted and logged.
    pub(super) told: BTreeSet<Refusal>,
    pub(super) pending: Option<Pending>,
    /// Tries of a restore that the kubelet has found infeasible.
    pub(super) retry: Option<Retry>,
    /// Reason and start of the trouble that was told last.
    pub(super) troubled: Option<(&'static str, SystemTime)>,
}

/// Names of the containers that are preset, and until when at most.
#[derive(Debug)]
pub(super) struct Preset {
    pub(super) containers: BTreeSet<Box<str>>,
    pub(super) until: Instant,
}

/// Where a pod waits for its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Queue {
    Normal,
    Urgent,
}

/// The writes to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Restore,
    Metadata,
    ScaleDown,
    /// Takes back a restore that the kubelet finds infeasible.
    Withdraw,
}

/// A write that the server refused. It would refuse it again.
#[derive(Debug)]
struct Refused {
    generation: i64,
    body: Value,
    until: Option<Instant>,
}

/// Whether a write rests because it was refused.
pub(super) enum Rest {
    No,
    Until(Instant),
    ForGood,
}

impl Work {
    /// For a pod that is new, also under a name that was another pod's.
    pub(super) fn renew(&mut self, uid: &str) {
        if *self.uid != *uid {
            // A preset may come before the pod itself.
            let preset = self.preset.take().filter(|_| self.uid.is_empty());
            *self = Self { uid: uid.into(), queued: self.queued, preset, ..Self::default() };
        }
    }

    /// Whether there was a preset only, and its time is over.
    pub(super) fn expired(&self, now: Instant) -> bool {
        self.preset.as_ref().is_none_or(|preset| preset.until <= now)
    }

    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
        self.not_before = None;
    }

    pub(super) fn failed(&mut self, now: Instant) {
        let (shortest, longest) = BACKOFF;
        let backoff = shortest * 2u32.pow(self.failures.min(12));
        self.failures += 1;
        self.not_before = Some(now + backoff.min(longest));
    }

    /// Remembers a refusal. That of a scale-down holds for as long as the
    /// pod's spec stays the same: each further scaling would ask in vain.
    pub(super) fn refused(&mut self, kind: Kind, generation: i64, body: Value, now: Instant) {
        let until = match kind {
            Kind::Restore => Some(now + REFUSED_RESTORE_REST),
            Kind::Metadata => Some(now + REFUSED_METADATA_REST),
            Kind::ScaleDown | Kind::Withdraw => None,
        };
        self.refused.insert(kind, Refused { generation, body, until });
    }

    /// Whether this very write was refused, and rests.
    pub(super) fn refusal(&self, kind: Kind, generation: i64, body: &Value, now: Instant) -> Rest {
        let same = |refused: &&Refused| refused.generation == generation && refused.body == *body;
        match self.refused.get(&kind).filter(same).map(|refused| refused.until) {
            Some(None) => Rest::ForGood,
            Some(Some(until)) if until > now => Rest::Until(until),
            _ => Rest::No,
        }
    }

    /// When these labels and annotations may be written: a label that has just
    /// been changed waits, and with it what only it asks for.
    pub(super) fn metadata_due(&self, metadata: &Metadata, now: Instant) -> Instant {
        let labels = metadata.labels.keys().map(|name| self.due(Kind::Metadata, name, now));
        let annotations =
            (!metadata.annotations.is_empty() && metadata.labels.is_empty()).then_some(now);
        labels.chain(annotations).min().unwrap_or(now)
    }

    /// When these requests may be lowered.
    pub(super) fn scale_down_due(&self, resize: &Resize, now: Instant) -> Instant {
        let containers = resize.containers.iter();
        containers
            .map(|container| self.due(Kind::ScaleDown, &container.name, now))
            .min()
            .unwrap_or(now)
    }

    /// Notes a write to these containers, which must not come again before
    /// `until`.
    pub(super) fn starts<'a>(
        &mut self,
        kind: Kind,
        containers: impl Iterator<Item = &'a Box<str>>,
        until: Instant,
        now: Instant,
    ) {
        self.recent.retain(|(_, _, until)| *until > now);
        self.recent.extend(containers.map(|name| (kind, name.clone(), until)));
    }

    fn due(&self, kind: Kind, name: &str, now: Instant) -> Instant {
        let same = self.recent.iter().filter(|(of, known, _)| *of == kind && **known == *name);
        same.map(|(_, _, until)| *until).max().map_or(now, |until| until.max(now))
    }
}
