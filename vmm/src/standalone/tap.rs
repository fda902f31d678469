//! The option `--tap NAME[,queues=N][,mac=MAC]` of a standalone VMM: a network device whose tap the VMM opens
//! itself. The options are parsed by `StandaloneArguments`; the shim never uses them.

use std::str::FromStr;

use anyhow::{Context as _, Result};
use nacre_vmm::virtio::net;

/// The MTU of each network device.
const MTU: u16 = 1500;

/// The value of the option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapOption {
    name: String,
    /// Queue pairs.
    queues: usize,
    mac: Option<[u8; 6]>,
}

impl TapOption {
    /// Opens the tap; `number` becomes part of the address if none was given.
    pub fn open(&self, number: u8) -> Result<net::Config> {
        let taps = (0..self.queues)
            .map(|_| net::open_tap(&self.name, self.queues > 1))
            .collect::<std::io::Result<_>>()
            .with_context(|| format!("opening the tap {}", self.name))?;
        let mac = self.mac.unwrap_or([2, 0, 0, 0, 0, number]);
        net::Config::new(taps, mac, MTU).with_context(|| format!("the tap {}", self.name))
    }
}

impl FromStr for TapOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, mac) = match text.split_once(",mac=") {
            None => (text, None),
            Some((name, mac)) => (name, Some(parse_mac(mac)?)),
        };
        let (name, queues) = match name.split_once(",queues=") {
            None => (name, 1),
            Some((name, queues)) => (name, queues.parse().map_err(|_| "expected a number of queues")?),
        };
        if name.is_empty() || name.contains(',') {
            return Err("expected NAME[,queues=N][,mac=MAC]".to_owned());
        }
        Ok(Self {
            name: name.to_owned(),
            queues,
            mac,
        })
    }
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| {
            let is_hex = byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
            u8::from_str_radix(byte, 16).ok().filter(|_| is_hex)
        })
        .collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| format!("expected an address such as 02:00:00:00:00:01, got {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_or_without_an_address_is_read() {
        let option = |queues, mac| {
            Ok(TapOption {
                name: "tap0".to_owned(),
                queues,
                mac,
            })
        };
        assert_eq!("tap0".parse(), option(1, None));
        assert_eq!("tap0,queues=2".parse(), option(2, None));
        assert_eq!(
            "tap0,mac=02:00:00:00:0a:ff".parse(),
            option(1, Some([2, 0, 0, 0, 10, 255]))
        );
        for wrong in [
            "",
            ",mac=02:00:00:00:00:01",
            "tap0,mtu=9",
            "tap0,queues=x",
            "tap0,mac=2:0:0:0:0:1",
            "tap0,mac=+2:00:00:00:00:01",
        ] {
            assert!(wrong.parse::<TapOption>().is_err(), "{wrong}");
        }
    }
}
