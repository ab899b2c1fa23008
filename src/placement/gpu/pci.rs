//! Where a device is on the PCI bus.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A PCI address. Written as Linux does, `0000:17:00.0`; ordered as NVML orders GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// Some text isn't a PCI address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a PCI address such as 0000:17:00.0")]
pub struct NotAnAddress;

impl FromStr for PciAddress {
    type Err = NotAnAddress;

    /// Reads `DOMAIN:BUS:DEVICE.FUNCTION` in hexadecimal. NVML writes the domain with eight digits; without
    /// one it's 0.
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let read = || {
            let (rest, function) = text.rsplit_once('.')?;
            let (rest, device) = rest.rsplit_once(':')?;
            let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
            let number = |text: &str, digits: usize, most: u32| {
                let fits = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
                u32::from_str_radix(text, 16).ok().filter(|&n| fits && n <= most)
            };
            Some(Self {
                domain: number(domain, 8, u32::MAX)?,
                bus: number(bus, 2, 0xff)? as u8,
                device: number(device, 2, 0x1f)? as u8,
                function: number(function, 1, 7)? as u8,
            })
        };
        read().ok_or(NotAnAddress)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}
