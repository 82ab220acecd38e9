//! The in-process API server answers like the real one.
