//! PCI addresses, as the kernel, lspci and the drivers write them.

use std::fmt;
use std::str::FromStr;

/// Where a function of a PCI device is: `0000:17:00.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// A text that is no PCI address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no PCI address: one looks like 0000:17:00.0")]
pub struct NoPciAddress;

impl FromStr for PciAddress {
    type Err = NoPciAddress;

    /// Reads the address as sysfs has it (a domain of four digits, five behind Intel's VMD) and as NVML writes
    /// it (eight, upper case: `nvmlPciInfo_t.busId`).
    fn from_str(text: &str) -> Result<Self, NoPciAddress> {
        let (domain, rest) = text.split_once(':').ok_or(NoPciAddress)?;
        let (bus, rest) = rest.split_once(':').ok_or(NoPciAddress)?;
        let (device, function) = rest.split_once('.').ok_or(NoPciAddress)?;
        Ok(Self {
            domain: hex(domain, 4..=8, u32::MAX)?,
            bus: hex(bus, 2..=2, 0xff)? as u8,
            // Five bits and three bits (include/uapi/linux/pci.h).
            device: hex(device, 2..=2, 0x1f)? as u8,
            function: hex(function, 1..=1, 7)? as u8,
        })
    }
}

/// So many hexadecimal digits, with a value of at most `most`.
fn hex(text: &str, digits: std::ops::RangeInclusive<usize>, most: u32) -> Result<u32, NoPciAddress> {
    let all_hex = text.bytes().all(|b| b.is_ascii_hexdigit());
    let value = u32::from_str_radix(text, 16).ok().filter(|_| all_hex && digits.contains(&text.len()));
    value.filter(|value| *value <= most).ok_or(NoPciAddress)
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.device, self.function)
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
        ] {
            assert_eq!(text.parse::<PciAddress>().map(|a| a.to_string()).as_deref(), Ok(canonical));
        }
    }

    #[test]
    fn anything_else_is_none() {
        for text in [
            "",
            "0000",
            "17:00.0",
            "pci0000:00",
            "0000:17:00",
            "0000:17:00.8",
            "0000:17:20.0",
            "000:17:00.0",
            "0000:117:00.0",
            "+000:17:00.0",
            "0000:17:00.00",
            "000000000:17:00.0",
            "0000:17:00.0 ",
        ] {
            assert_eq!(text.parse::<PciAddress>(), Err(NoPciAddress), "{text:?}");
        }
    }
}
