//! Options as text, for a command line or a file of settings: "guided", "dynamic:16", "forkserver".

use std::time::Duration;

/// The value of an option that stands after a colon.
pub(crate) trait Value: Sized {
    fn text(&self) -> String;

    fn parse(text: &str) -> Option<Self>;
}

impl Value for usize {
    fn text(&self) -> String {
        self.to_string()
    }

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

/// Numbers with commas between them.
impl Value for Vec<usize> {
    fn text(&self) -> String {
        let numbers: Vec<String> = self.iter().map(usize::to_string).collect();
        numbers.join(",")
    }

    fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::new());
        }
        let numbers = text.split(',').map(|number| number.trim().parse().ok());
        numbers.collect()
    }
}

/// The units of a time, in nanoseconds.
const UNITS: [(&str, u128); 4] = [
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// A whole number with a unit, the largest in which it is whole.
impl Value for Duration {
    fn text(&self) -> String {
        let time = self.as_nanos();
        let is_whole = |(_, unit): &&(&str, u128)| time.is_multiple_of(*unit);
        let (name, unit) = UNITS.iter().find(is_whole).unwrap_or(&("ns", 1));
        format!("{}{name}", time / unit)
    }

    fn parse(text: &str) -> Option<Self> {
        let (number, name) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let name = name.trim().replace('µ', "u");
        let (_, unit) = UNITS.iter().find(|(other, _)| *other == name)?;
        let time = number.parse::<u128>().ok()?.checked_mul(*unit)?;
        let (second, rest) = (1_000_000_000, time % 1_000_000_000);
        Some(Self::new(u64::try_from(time / second).ok()?, rest as u32))
    }
}

/// Gives an option its texts, by `Display`, `FromStr` and serde: those of the variants without a
/// value, and of the one with a value, if there is one. `$forms` says which texts there are.
macro_rules! as_text {
    (
        $type:ident, $option:literal, $forms:literal,
        $($unit:ident = $name:literal),+
        $(; $with:ident = $prefix:literal)?
    ) => {
        /// Writes the text that `FromStr` reads.
        impl ::std::fmt::Display for $type {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                match self {
                    $(Self::$unit => f.pad($name),)+
                    $(Self::$with(value) => {
                        let value = $crate::text::Value::text(value);
                        f.pad(&format!("{}:{value}", $prefix))
                    })?
                }
            }
        }

        #[doc = concat!("Parses ", $forms, ".")]
        impl ::std::str::FromStr for $type {
            type Err = $crate::error::PoolError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let known = match text.trim() {
                    $($name => Some(Self::$unit),)+
                    _ => None,
                };
                $(let known = known.or_else(|| {
                    let (name, value) = text.split_once(':')?;
                    let value = $crate::text::Value::parse(value.trim())?;
                    (name.trim() == $prefix).then_some(Self::$with(value))
                });)?
                known.ok_or_else(|| $crate::error::PoolError::InvalidOption {
                    option: $option.into(),
                    value: format!("{text:?}"),
                    reason: concat!("it can be ", $forms).into(),
                })
            }
        }

        impl ::serde::Serialize for $type {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $type {
            fn deserialize<D: ::serde::Deserializer<'de>>(
                deserializer: D,
            ) -> Result<Self, D::Error> {
                let text = <String as ::serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(::serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use as_text;

/// Implements `Debug` and `Display` for guards, which show the value that they guard.
macro_rules! shows_value {
    ($($guard:ident: $trait:ident),*) => {$(
        impl<T: std::fmt::$trait> std::fmt::$trait for $guard<'_, T> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                (**self).fmt(f)
            }
        }
    )*};
}
pub(crate) use shows_value;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_as_it_was_written_and_in_any_unit() {
        for (time, text) in [
            (Duration::ZERO, "0s"),
            (Duration::from_micros(50), "50us"),
            (Duration::from_millis(90_500), "90500ms"),
            (Duration::from_nanos(1), "1ns"),
            (Duration::MAX, "18446744073709551615999999999ns"),
        ] {
            assert_eq!(time.text(), text);
            assert_eq!(<Duration as Value>::parse(text), Some(time));
        }
        let same = ["2ms", "2000us", "2000 µs", "2000000ns"];
        let times = same.map(<Duration as Value>::parse);
        assert_eq!(times, [Some(Duration::from_millis(2)); 4]);
        for wrong in ["", "5", "ms", "-1s", "1.5s", "5m", "18446744073709551616s"] {
            assert_eq!(<Duration as Value>::parse(wrong), None, "{wrong}");
        }
    }
}
