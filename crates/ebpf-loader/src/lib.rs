//! Loads, pins and attaches the traffic redirector of each zeropod sandbox.
