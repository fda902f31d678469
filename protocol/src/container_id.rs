//! The rule for container ids. Shim and agent check it, because an id is the name of a directory on both
//! sides and of mount points in the guest. Everything that containerd accepts as an id is valid. Pure.

/// The rule, for error messages.
pub const RULE: &str = "1 to 128 letters, digits, '_', '+', '-' and '.', not beginning with '.'";
const MAX_LEN: usize = 128;

/// Whether `id` follows the [`RULE`].
#[must_use]
pub fn is_valid(id: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    (1..=MAX_LEN).contains(&id.len()) && !id.starts_with('.') && id.chars().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_can_be_directory_names() {
        for id in ["a", "e2e-1_x.y", "A_b+c.d", "0123456789abcdef", &"x".repeat(128)] {
            assert!(is_valid(id), "{id}");
        }
        for id in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a b",
            ".hidden",
            "ä",
            &"x".repeat(129),
        ] {
            assert!(!is_valid(id), "{id}");
        }
    }
}
