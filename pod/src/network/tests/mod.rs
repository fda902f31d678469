//! The pod's network, planned from lists that are written here (`plan`), and in real namespaces (`lab`).

mod lab;
mod plan;
