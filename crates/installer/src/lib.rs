//! Puts the zeropod runtime on a node and configures containerd.
