//! Addresses as text, for error messages.

use std::net::{Ipv4Addr, Ipv6Addr};

use nacre_protocol::agent::Route;

/// An IP address of 4 or 16 bytes; other bytes as numbers.
#[must_use]
pub fn ip(bytes: &[u8]) -> String {
    if let Ok(ipv4) = <[u8; 4]>::try_from(bytes) {
        return Ipv4Addr::from(ipv4).to_string();
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(ipv6) => Ipv6Addr::from(ipv6).to_string(),
        Err(_) => format!("{bytes:?}"),
    }
}

/// A hardware address, such as "02:00:00:00:00:01".
#[must_use]
pub fn mac(bytes: &[u8]) -> String {
    let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

/// The prefix that a route leads to, or "default".
#[must_use]
pub fn destination(route: &Route) -> String {
    if route.destination.is_empty() {
        return "default".to_owned();
    }
    format!("{}/{}", ip(&route.destination), route.prefix_length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_usual() {
        assert_eq!(ip(&[10, 0, 0, 1]), "10.0.0.1");
        let mut loopback = [0; 16];
        loopback[15] = 1;
        assert_eq!(ip(&loopback), "::1");
        assert_eq!(ip(&[1, 2]), "[1, 2]");
        assert_eq!(mac(&[2, 0, 0, 0, 0, 255]), "02:00:00:00:00:ff");
        let mut route = Route::default();
        assert_eq!(destination(&route), "default");
        route.destination = vec![10, 0, 0, 0];
        route.prefix_length = 8;
        assert_eq!(destination(&route), "10.0.0.0/8");
    }
}
