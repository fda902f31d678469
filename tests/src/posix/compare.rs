//! Compares what a behaviour showed under runc and under Nacre with each other and with what it must be.
//! Pure; called by `nacre-posix`.

use super::Behaviour;
use super::root::Place;

/// A behaviour in which Nacre may differ from runc, or both from what is expected of every file system.
pub struct Allowed {
    /// The behaviour's name.
    pub name: &'static str,
    /// Where it may differ; None for every place.
    pub place: Option<Place>,
    /// Why, for the output and docs/shared-files.md.
    pub reason: &'static str,
    /// What Nacre shows instead.
    pub nacre: &'static str,
}

/// The result of a comparison.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Both are the same, and as expected.
    Equal,
    /// They differ and may, for this reason.
    Allowed(&'static str),
    /// The text has both observations.
    Different(String),
}

/// The entry of `list` for `behaviour` at `place`.
pub fn allowed<'a>(list: &'a [Allowed], behaviour: &Behaviour, place: Place) -> Option<&'a Allowed> {
    list.iter()
        .find(|entry| entry.name == behaviour.name && entry.place.is_none_or(|only| only == place))
}

/// Compares two observations; None is one that is missing, since the program ended before.
pub fn compare(
    behaviour: &Behaviour,
    allowed: Option<&Allowed>,
    runc: Option<&str>,
    nacre: Option<&str>,
) -> Verdict {
    let (Some(runc), Some(nacre)) = (runc, nacre) else {
        return Verdict::Different(format!("runc: {runc:?}\nnacre: {nacre:?}"));
    };
    let both = format!("runc:  {runc}\nnacre: {nacre}");
    let as_expected = |found: &str| behaviour.expected.is_none_or(|expected| found == expected);
    match allowed {
        Some(allowed) if nacre == allowed.nacre && (runc != nacre || !as_expected(nacre)) => {
            Verdict::Allowed(allowed.reason)
        }
        Some(allowed) => Verdict::Different(format!(
            "{both}\nallowed to differ ({}) as: {}",
            allowed.reason, allowed.nacre
        )),
        None if runc == nacre && as_expected(nacre) => Verdict::Equal,
        None => Verdict::Different(format!(
            "{both}{}",
            behaviour
                .expected
                .map(|expected| format!("\nmust be: {expected}"))
                .unwrap_or_default()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEHAVIOUR: Behaviour = Behaviour {
        name: "one",
        expected: Some("ok"),
        observe: || Ok("ok".to_owned()),
    };
    const ALLOWED: Allowed = Allowed {
        name: "one",
        place: Some(Place::Rootfs),
        reason: "a reason",
        nacre: "EPERM",
    };

    #[test]
    fn only_equal_expected_and_allowed_observations_pass() {
        let plain = |runc, nacre| compare(&BEHAVIOUR, None, runc, nacre);
        assert_eq!(plain(Some("ok"), Some("ok")), Verdict::Equal);
        let free = Behaviour {
            expected: None,
            ..BEHAVIOUR
        };
        assert_eq!(compare(&free, None, Some("any"), Some("any")), Verdict::Equal);
        let may = |runc, nacre| compare(&BEHAVIOUR, Some(&ALLOWED), runc, nacre);
        assert_eq!(may(Some("ok"), Some("EPERM")), Verdict::Allowed("a reason"));
        for verdict in [
            plain(Some("ok"), Some("EPERM")),
            plain(Some("EPERM"), Some("ok")),
            plain(Some("EPERM"), Some("EPERM")),
            plain(None, Some("ok")),
            plain(Some("ok"), None),
            plain(None, None),
            may(Some("ok"), Some("ok")),
            may(Some("ok"), Some("EIO")),
            may(None, Some("EPERM")),
            compare(&free, Some(&ALLOWED), Some("EPERM"), Some("EPERM")),
        ] {
            assert!(matches!(verdict, Verdict::Different(_)), "{verdict:?}");
        }
        // A fault that both share can be allowed by name.
        assert_eq!(may(Some("EPERM"), Some("EPERM")), Verdict::Allowed("a reason"));
    }

    #[test]
    fn an_entry_is_for_one_place() {
        let list = [ALLOWED];
        assert!(allowed(&list, &BEHAVIOUR, Place::Rootfs).is_some());
        assert!(allowed(&list, &BEHAVIOUR, Place::Volume).is_none());
    }
}
