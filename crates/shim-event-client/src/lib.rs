//! Follows every zeropod shim of a node and publishes what its containers are doing.
