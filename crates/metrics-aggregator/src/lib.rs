//! Turns container changes into Prometheus series.
