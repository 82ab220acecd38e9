//! When a restore that the kubelet has found infeasible is asked for again.
//!
//! The kubelet itself tries deferred resizes again, when a pod of the node ends
//! and every few minutes, and failed ones at each sync of the pod. Taking a
//! deferred one back would give up its place: the scheduler keeps what it asks
//! for free. But an infeasible one is never looked at again until the pod asks
//! for something else (KEP-1287), although the node can have changed: so it is
//! taken back and asked for anew.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// The longest rest, in shortest ones.
const LONGEST: u32 = 30;
/// How long a kubelet may take to see that a restore was taken back. One that
/// sees only the end of both would not look at it anew.
const SEEN_WITHIN: Duration = Duration::from_secs(10);
/// How long a pod must have been well until its next trouble counts as another.
const FORGET: Duration = Duration::from_mins(5);

/// The tries of one pod.
#[derive(Debug)]
pub(super) struct Retry {
    /// Before the first try.
    rest: Duration,
    tries: u32,
    due: Instant,
    /// Containers whose restore was taken back, and until when at most it is
    /// held.
    withdrawn: Option<(BTreeSet<Box<str>>, Instant)>,
    /// Since when the kubelet finds nothing infeasible.
    well_since: Option<Instant>,
}

impl Retry {
    /// For a pod that has just been found infeasible.
    pub(super) fn new(rest: Duration, now: Instant) -> Self {
        Self { rest, tries: 0, due: now + rest, withdrawn: None, well_since: None }
    }

    /// Takes what the kubelet says now. Returns whether this is still the
    /// trouble that it was about.
    pub(super) fn note(&mut self, infeasible: bool, now: Instant) -> bool {
        if !infeasible {
            self.well_since.get_or_insert(now);
            return true;
        }
        let well = self.well_since.take();
        well.is_none_or(|since| now.saturating_duration_since(since) < FORGET)
    }

    /// When the next try may be made.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// A restore of these containers is taken back.
    pub(super) fn withdrawn(&mut self, containers: BTreeSet<Box<str>>, now: Instant) {
        self.tries += 1;
        self.due = now + self.rest * 2u32.pow(self.tries.min(10)).min(LONGEST);
        self.withdrawn = Some((containers, now + SEEN_WITHIN));
    }

    /// A restore goes out. What the kubelet says may still be of an earlier one.
    pub(super) fn restored(&mut self, now: Instant) {
        self.due = self.due.max(now + self.rest);
    }

    /// Until when a restore of these containers waits for the kubelet to see
    /// that it was taken back. That of any other container never waits.
    pub(super) fn held<'a>(
        &self,
        mut containers: impl Iterator<Item = &'a Box<str>>,
        now: Instant,
    ) -> Option<Instant> {
        let (withdrawn, until) = self.withdrawn.as_ref()?;
        let seen = self.well_since.is_some() || *until <= now;
        (!seen && containers.all(|name| withdrawn.contains(name))).then_some(*until)
    }
}
