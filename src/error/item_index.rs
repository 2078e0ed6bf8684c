//! [`ItemIndex`]: which item of a call an error is about, in seven bytes.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The position of an item in the input of its call, from 0; none for a task given by `submit`.
///
/// It takes seven bytes, so that it shares a word with what says which variant of
/// [`TaskError`](crate::TaskError) there is. It compares with `Option<usize>`, and is printed as
/// one by `{:?}`.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let error = Pool::serial().map(|x| 10 / x, [5, 0, 2]).unwrap_err();
/// let TaskError::Panicked { index, .. } = error else {
///     panic!("{error}")
/// };
/// assert_eq!(index.get(), Some(1));
/// assert!(index == Some(1));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ItemIndex([u8; 7]);

impl ItemIndex {
    /// The index of a task that `submit` was given.
    pub(crate) const NONE: Self = Self([0; 7]);

    /// Returns the position; `None` for a task given by `submit`.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::error::ItemIndex;
    ///
    /// assert_eq!(ItemIndex::from(Some(7)).get(), Some(7));
    /// assert_eq!(ItemIndex::from(None).get(), None);
    /// ```
    pub fn get(self) -> Option<usize> {
        let mut word = [0; 8];
        word[..7].copy_from_slice(&self.0);
        u64::from_le_bytes(word)
            .checked_sub(1)
            .map(|index| index as usize)
    }
}

impl From<Option<usize>> for ItemIndex {
    /// Makes one. A position from 2⁵⁶ - 1 on, which no call reaches within a year, counts as none.
    fn from(index: Option<usize>) -> Self {
        let word = index.map_or(0, |index| (index as u64).saturating_add(1));
        let [low @ .., high] = word.to_le_bytes();
        if high == 0 { Self(low) } else { Self::NONE }
    }
}

impl PartialEq<Option<usize>> for ItemIndex {
    fn eq(&self, other: &Option<usize>) -> bool {
        self.get() == *other
    }
}

impl fmt::Debug for ItemIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl Serialize for ItemIndex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.get().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ItemIndex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_kept_up_to_seven_bytes() {
        let largest = (1usize << 56) - 2;
        for index in [0, 1, 254, 255, 256, 1 << 40, largest] {
            let kept = ItemIndex::from(Some(index));
            assert_eq!(kept.get(), Some(index));
            assert!(kept == Some(index) && kept != None && kept != Some(index + 1));
            assert_eq!(format!("{kept:?}"), format!("{:?}", Some(index)));
        }
        for none in [None, Some(largest + 1), Some(usize::MAX)] {
            assert_eq!(ItemIndex::from(none).get(), None);
        }
    }
}
