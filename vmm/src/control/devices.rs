//! Devices as the shim configures them. Called for those of the start and for each one that the shim adds later;
//! starts none.

use nacre_protocol::control::{DescriptorError, Descriptors, DeviceConfig, DeviceListError};
use nacre_protocol::stream_table::StreamTable;

use super::Control;
use crate::config;
use crate::machine::DeviceBuilder;
use crate::virtio::{blk, fs, mem, net, vsock};

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A value is out of range.
    #[error(transparent)]
    Value(#[from] config::Error),
    /// There are too many devices, or too few.
    #[error(transparent)]
    Devices(#[from] DeviceListError),
    /// A descriptor is missing, or is used twice or not at all.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    /// A network device has an invalid value, or a descriptor that is not a tap.
    #[error("devices: {0}")]
    Net(#[from] net::ConfigError),
    /// A disk has an invalid value, or a descriptor that can't be a disk.
    #[error("devices: {0}")]
    Blk(#[from] blk::ConfigError),
    /// A file that a device needs can't be opened.
    #[error("open /proc/self/fd: {0}")]
    Open(#[from] std::io::Error),
}

/// The device that `config` describes: the one place where a configuration becomes a device. Opens what can't
/// be opened in the jail.
pub fn builder(
    config: DeviceConfig,
    descriptors: &mut Descriptors,
    control: &Control,
) -> Result<DeviceBuilder, Refused> {
    Ok(match config {
        DeviceConfig::Vsock { stream_table } => {
            let table = descriptors.take("devices: vsock: stream_table", stream_table)?;
            let config = vsock::Config {
                host: Box::new(control.connection_sender(StreamTable::new(table.into()))),
                listener: None,
            };
            Box::new(|env| vsock::spawn(config, env))
        }
        DeviceConfig::Fs { tag } => {
            let config = fs::Config {
                tag,
                // The root of this process's mount namespace, into which the shim moves the containers'
                // mounts.
                root: "/".into(),
                prepared: fs::Prepared::before_jail()?,
            };
            Box::new(|env| fs::spawn(config, env))
        }
        DeviceConfig::Net { taps, mac, mtu } => {
            let taps = taps
                .into_iter()
                .map(|tap| descriptors.take("devices: net: taps", tap));
            let config = net::Config::new(taps.collect::<Result<_, _>>()?, mac, mtu)?;
            Box::new(|env| net::spawn(config, env))
        }
        DeviceConfig::Blk {
            file,
            read_only,
            serial,
            queues,
        } => {
            let file = descriptors.take("devices: blk: file", file)?;
            let config = blk::Config::new(file, read_only, &serial, queues)?;
            Box::new(|env| blk::spawn(config, env))
        }
        DeviceConfig::Mem { max_mib } => {
            let config = mem::Config {
                max_bytes: u64::from(max_mib) << 20,
                on_reached: control.memory_reporter(),
            };
            Box::new(|env| mem::spawn(config, env))
        }
    })
}
