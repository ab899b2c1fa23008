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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_the_same_address() {
        for (text, canonical) in [
            ("0000:17:00.0", "0000:17:00.0"),
            ("00000000:17:00.0", "0000:17:00.0"),
            ("0000:C1:1F.7", "0000:c1:1f.7"),
            ("10000:01:00.0", "10000:01:00.0"),
            ("17:00.0", "0000:17:00.0"),
        ] {
            assert_eq!(text.parse::<PciAddress>().map(|a| a.to_string()).as_deref(), Ok(canonical));
        }
    }

    #[test]
    fn anything_else_is_none() {
        for text in [
            "",
            "0000",
            "pci0000:00",
            "0000:17:00",
            "0000:17:00.8",
            "0000:17:20.0",
            "0000:117:00.0",
            "+000:17:00.0",
            "0000:17:00.00",
            "000000000:17:00.0",
            "0000:17:00.0 ",
        ] {
            assert_eq!(text.parse::<PciAddress>(), Err(NotAnAddress), "{text:?}");
        }
    }
}
