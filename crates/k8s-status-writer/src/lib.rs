//! Turns container changes into labels, events and in-place resizes of pods.
