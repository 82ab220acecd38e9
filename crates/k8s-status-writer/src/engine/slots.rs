//! Requests under way, so that what is slow for some holds up nothing more
//! urgent: a webhook that hangs for one namespace, or for Events.

/// How many requests of which kind may be under way.
#[derive(Debug)]
pub(super) struct Slots {
    all: usize,
    taken: usize,
    by_events: usize,
}

impl Slots {
    pub(super) fn new(all: usize) -> Self {
        Self { all: all.max(1), taken: 0, by_events: 0 }
    }

    pub(super) fn none_taken(&self) -> bool {
        self.taken == 0
    }

    /// Requests of a container that wakes up may take every slot.
    pub(super) fn free_for_restore(&self) -> bool {
        self.taken < self.all
    }

    /// A quarter is kept for waking up.
    pub(super) fn free_for_pod(&self) -> bool {
        self.taken < self.all - self.all / 4
    }

    /// Events take half of them at most.
    pub(super) fn free_for_event(&self) -> bool {
        self.free_for_pod() && self.by_events < (self.all / 2).max(1)
    }

    pub(super) fn take(&mut self, event: bool) {
        self.taken += 1;
        self.by_events += usize::from(event);
    }

    pub(super) fn give_back(&mut self, event: bool) {
        self.taken = self.taken.saturating_sub(1);
        self.by_events = self.by_events.saturating_sub(usize::from(event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_leaves_slots_for_what_is_more_urgent() {
        let mut slots = Slots::new(8);
        for _ in 0..4 {
            assert!(slots.free_for_event());
            slots.take(true);
        }
        assert!(!slots.free_for_event() && slots.free_for_pod());
        for _ in 0..2 {
            slots.take(false);
        }
        assert!(!slots.free_for_pod() && slots.free_for_restore());
        for _ in 0..2 {
            slots.take(false);
        }
        assert!(!slots.free_for_restore());
        slots.give_back(true);
        assert!(slots.free_for_restore() && !slots.free_for_event());
    }

    #[test]
    fn one_slot_serves_all() {
        let slots = Slots::new(0);
        assert!(slots.free_for_restore() && slots.free_for_pod() && slots.free_for_event());
    }
}
