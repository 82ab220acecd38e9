//! A Kubernetes API for tests: the real one, and one in process.
