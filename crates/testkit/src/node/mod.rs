//! Sandboxes, containers, the stand-in shim and its activator.
