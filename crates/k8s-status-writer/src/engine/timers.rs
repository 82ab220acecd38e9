//! When to look at which pod again.

use std::{
    collections::{BTreeSet, HashMap},
    time::Instant,
};

use zeropod_shim_api::id::PodRef;

/// The earliest time for each pod; whoever looks then sets the next.
#[derive(Debug, Default)]
pub(super) struct Timers {
    by_pod: HashMap<PodRef, Instant>,
    order: BTreeSet<(Instant, PodRef)>,
}

impl Timers {
    pub(super) fn set(&mut self, pod: &PodRef, at: Instant) {
        match self.by_pod.get(pod) {
            Some(known) if *known <= at => return,
            Some(known) => self.order.remove(&(*known, pod.clone())),
            None => false,
        };
        self.by_pod.insert(pod.clone(), at);
        self.order.insert((at, pod.clone()));
    }

    /// A pod that is due.
    pub(super) fn pop(&mut self, now: Instant) -> Option<PodRef> {
        self.order.first().filter(|(at, _)| *at <= now)?;
        let (_, pod) = self.order.pop_first()?;
        self.by_pod.remove(&pod);
        Some(pod)
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_timer_for_each_pod() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let (a, b) = (PodRef::new("n", "a").unwrap(), PodRef::new("n", "b").unwrap());
        let mut timers = Timers::default();
        for (pod, seconds) in [(&a, 5), (&b, 3), (&a, 2), (&a, 9)] {
            timers.set(pod, at(seconds));
        }
        assert_eq!(timers.next(), Some(at(2)));
        assert_eq!(timers.pop(at(1)), None);
        assert_eq!(timers.pop(at(10)), Some(a));
        assert_eq!(timers.pop(at(10)), Some(b));
        assert_eq!((timers.pop(at(10)), timers.next()), (None, None));
    }
}
