//! Documents that have passed the check. Their types are the proof: only the functions here make them, and
//! their content cannot be changed in place. The shim checks what containerd sends, the agent checks what the
//! shim sends, both by these functions, so that what the check refuses never reaches a guest.

use std::marker::PhantomData;

use serde_json::Value;

use super::filter::{filter_process, filter_spec, filter_update};
use super::findings::{Finding, Findings, Refused};
use super::parse::parse;

/// A document that has passed the check. Only fields that are applied are left in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked<D> {
    value: Value,
    ignored: Vec<Finding>,
    document: PhantomData<D>,
}

/// A whole config.json.
#[derive(Debug, Clone, PartialEq)]
pub enum Spec {}
/// A `process` object: of an exec process.
#[derive(Debug, Clone, PartialEq)]
pub enum Process {}
/// A `linux.resources` object: of an update.
#[derive(Debug, Clone, PartialEq)]
pub enum Resources {}

/// A config.json that has passed the check.
pub type CheckedSpec = Checked<Spec>;
/// The `process` object of an Exec that has passed the check.
pub type CheckedProcess = Checked<Process>;
/// The `linux.resources` object of an Update that has passed the check.
pub type CheckedResources = Checked<Resources>;

/// Checks a config.json.
///
/// # Errors
/// [`Refused`] with all fields that cannot be honoured, or with the JSON error.
pub fn check(json: &[u8]) -> Result<CheckedSpec, Refused> {
    check_document("config.json", "", json, filter_spec)
}

/// Checks the `process` object of an Exec.
///
/// # Errors
/// As [`check`].
pub fn check_process(json: &[u8]) -> Result<CheckedProcess, Refused> {
    check_document("process", "process", json, filter_process)
}

/// Checks the `linux.resources` object of an Update.
///
/// # Errors
/// As [`check`].
pub fn check_resources(json: &[u8]) -> Result<CheckedResources, Refused> {
    check_document("linux.resources", "linux.resources", json, filter_update)
}

fn check_document<D>(
    name: &str,
    path: &str,
    json: &[u8],
    filter: fn(&mut Value) -> Findings,
) -> Result<Checked<D>, Refused> {
    let mut value = parse(name, path, json)?;
    let ignored = filter(&mut value).into_ignored()?;
    Ok(Checked {
        value,
        ignored,
        document: PhantomData,
    })
}

impl<D> Checked<D> {
    /// The document, an object.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The fields that the check removed, and why.
    #[must_use]
    pub fn ignored(&self) -> &[Finding] {
        &self.ignored
    }

    /// The document and the fields that the check removed.
    #[must_use]
    pub fn into_parts(self) -> (Value, Vec<Finding>) {
        (self.value, self.ignored)
    }
}
