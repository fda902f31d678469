//! The option `--disk FILE[,ro][,queues=N][,blocking]` of a standalone VMM: a disk whose file the VMM opens itself.
//! The options are parsed by `StandaloneArguments`; the shim never uses them.

use std::fs::File;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context as _;
use nacre_vmm::virtio::blk;

/// The value of the option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOption {
    file: PathBuf,
    is_read_only: bool,
    queues: u16,
    io_uring: bool,
}

impl FromStr for DiskOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let mut option = Self {
            file: parts.next().unwrap_or_default().into(),
            is_read_only: false,
            queues: 1,
            io_uring: true,
        };
        for part in parts {
            match part.split_once('=').unwrap_or((part, "")) {
                ("ro", "") => option.is_read_only = true,
                ("blocking", "") => option.io_uring = false,
                ("queues", count) => {
                    option.queues = count
                        .parse()
                        .map_err(|error| format!("queues={count}: {error}"))?;
                }
                _ => return Err(format!("expected ro, queues=N or blocking, got {part:?}")),
            }
        }
        Ok(option)
    }
}

impl DiskOption {
    /// Opens the file. The guest finds the disk by its serial number `disk-<number>`.
    pub fn open(&self, number: usize) -> anyhow::Result<blk::Config> {
        let path = &self.file;
        let file = File::options()
            .read(true)
            .write(!self.is_read_only)
            .open(path)
            .with_context(|| format!("opening the disk {}", path.display()))?;
        let config = blk::Config::new(
            file.into(),
            self.is_read_only,
            &format!("disk-{number}"),
            self.queues,
        );
        let mut config = config.with_context(|| format!("the disk {}", path.display()))?;
        config.io_uring = self.io_uring;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_parsed() {
        let plain: DiskOption = "a/b=c".parse().unwrap();
        assert_eq!(
            (plain.file.to_str(), plain.is_read_only, plain.queues),
            (Some("a/b=c"), false, 1)
        );
        assert!(plain.io_uring);
        let all: DiskOption = "f,ro,queues=3,blocking".parse().unwrap();
        assert!(all.is_read_only && all.queues == 3 && !all.io_uring);
        for wrong in ["f,rw", "f,ro=1", "f,queues", "f,queues=x", "f,"] {
            assert!(wrong.parse::<DiskOption>().is_err(), "{wrong}");
        }
    }
}
