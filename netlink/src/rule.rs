//! Rules of the routing policy. They name links by their names, so that a rule is carried over as it is: what
//! the kernel lists is what it accepts.

use crate::message::{F_CREATE_NEW, Message, attributes_after, u8_at};

const NEWRULE: u16 = 32;
const GETRULE: u16 = 34;
/// Length of `struct fib_rule_hdr`.
const HEADER: usize = 12;
const PROTOCOL: u16 = 21;
/// RTPROT_KERNEL.
const BY_KERNEL: u8 = 2;

/// Asks for the rules of a family.
#[must_use]
pub fn list(family: i32) -> Message {
    let mut header = [0; HEADER];
    header[0] = u8::try_from(family).unwrap_or_default();
    Message::new(GETRULE, 0, &header)
}

/// One entry of [`list`], as it is; None for the rules that every network namespace has.
#[must_use]
pub fn parse(body: &[u8]) -> Option<Vec<u8>> {
    let mut attributes = attributes_after(body, HEADER);
    let is_kernel_s = attributes.any(|(kind, value)| kind == PROTOCOL && u8_at(value, 0) == Some(BY_KERNEL));
    (body.len() >= HEADER && !is_kernel_s).then(|| body.to_vec())
}

/// Adds a rule that [`parse`] returned.
#[must_use]
pub fn add(rule: &[u8]) -> Message {
    Message::new(NEWRULE, F_CREATE_NEW, rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rules_of_programs_are_carried_over() {
        let of = |protocol: u8| {
            let message = add(&[2, 0, 0, 0, 100, 0, 0, 1, 0, 0, 0, 0]).with(PROTOCOL, &[protocol]);
            parse(&message.finish(0, 0)[16..])
        };
        assert_eq!(of(BY_KERNEL), None);
        let rule = of(3).unwrap();
        assert_eq!(add(&rule).finish(0, 0).len(), 16 + rule.len());
        assert_eq!(parse(&[2]), None);
    }
}
