//! [`ItemIndex`]: which item of a call, or which task, an error is about, in seven bytes.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::TaskId;

/// The position of an item in the input of its call, from 0; none for a task given by `submit`,
/// whose [`TaskId`] it holds instead.
///
/// It takes seven bytes, so that it shares a word with what says which variant of
/// [`TaskError`](crate::TaskError) there is. It compares with `Option<usize>`, and is printed as
/// one by `{:?}`, unless it holds the id of a task.
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

/// The bit of the word that says that the rest is the number of a task. Without it, the word is the
/// position plus 1, or 0 for neither.
const IS_TASK: u64 = 1 << 55;

impl ItemIndex {
    /// Neither a position nor a task.
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
        let word = self.word();
        let position = if word < IS_TASK { word } else { 0 };
        position.checked_sub(1).map(|index| index as usize)
    }

    /// Returns the task, if it was given by `submit`; `None` for an item of a call.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let task = Pool::serial().submit(|x| 10 / x, 0);
    /// let id = task.id();
    /// let Err(TaskError::Panicked { index, .. }) = task.result() else {
    ///     panic!("10 / 0 has a result")
    /// };
    /// assert_eq!((index.get(), index.task()), (None, Some(id)));
    /// ```
    pub fn task(self) -> Option<TaskId> {
        let word = self.word();
        (word >= IS_TASK).then(|| TaskId::of_number(word - IS_TASK))
    }

    /// Makes one that holds a task. A number from 2⁵⁵ on, which no process reaches within a year,
    /// counts as none.
    pub(crate) fn of_task(task: TaskId) -> Self {
        let number = task.number();
        Self::of_word(if number < IS_TASK {
            IS_TASK + number
        } else {
            0
        })
    }

    /// Returns the word that says what this holds, for another process of the same build.
    #[cfg(target_os = "linux")]
    pub(crate) fn to_word(self) -> u64 {
        self.word()
    }

    /// Makes one of a word that another process has written; `None` if it stands for nothing.
    #[cfg(target_os = "linux")]
    pub(crate) fn from_word(word: u64) -> Option<Self> {
        (word < IS_TASK << 1).then(|| Self::of_word(word))
    }

    /// Returns the item that lies `more` items behind this one; a task stays what it is.
    #[cfg(target_os = "linux")]
    pub(crate) fn plus(self, more: usize) -> Self {
        match self.get() {
            Some(index) => Some(index.saturating_add(more)).into(),
            None => self,
        }
    }

    fn word(self) -> u64 {
        let mut word = [0; 8];
        word[..7].copy_from_slice(&self.0);
        u64::from_le_bytes(word)
    }

    /// Packs a word, which is less than 2⁵⁶.
    fn of_word(word: u64) -> Self {
        let [low @ .., _] = word.to_le_bytes();
        Self(low)
    }
}

impl From<Option<usize>> for ItemIndex {
    /// Makes one. A position from 2⁵⁵ - 1 on, which no call reaches within a year, counts as none.
    fn from(index: Option<usize>) -> Self {
        let word = index.map_or(0, |index| (index as u64).saturating_add(1));
        Self::of_word(if word < IS_TASK { word } else { 0 })
    }
}

impl PartialEq<Option<usize>> for ItemIndex {
    fn eq(&self, other: &Option<usize>) -> bool {
        self.get() == *other
    }
}

impl fmt::Debug for ItemIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.task() {
            Some(task) => task.fmt(f),
            None => self.get().fmt(f),
        }
    }
}

/// What an [`ItemIndex`] holds, as it is written in a format for people to read: a position is a
/// number.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    None,
    Item(usize),
    Task { task: TaskId },
}

impl Serialize for ItemIndex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return self.word().serialize(serializer);
        }
        let written = match (self.task(), self.get()) {
            (Some(task), _) => Written::Task { task },
            (None, Some(index)) => Written::Item(index),
            (None, None) => Written::None,
        };
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ItemIndex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            let word = u64::deserialize(deserializer)?;
            return Ok(Self::of_word(if word < IS_TASK << 1 { word } else { 0 }));
        }
        Ok(match Written::deserialize(deserializer)? {
            Written::None => Self::NONE,
            Written::Item(index) => Some(index).into(),
            Written::Task { task } => Self::of_task(task),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_kept_up_to_seven_bytes() {
        let largest = (1usize << 55) - 2;
        for index in [0, 1, 254, 255, 256, 1 << 40, largest] {
            let kept = ItemIndex::from(Some(index));
            assert_eq!(kept.get(), Some(index));
            assert!(kept == Some(index) && kept != None && kept != Some(index + 1));
            assert_eq!(format!("{kept:?}"), format!("{:?}", Some(index)));
        }
        for none in [None, Some(largest + 1), Some(usize::MAX)] {
            assert_eq!(ItemIndex::from(none), ItemIndex::NONE);
            assert_eq!(ItemIndex::from(none).get(), None);
        }
    }

    #[test]
    fn b99_a_task_is_kept_beside_the_positions() {
        let largest = IS_TASK - 1;
        for number in [0, 1, 255, 1 << 40, largest] {
            let task = TaskId::of_number(number);
            let kept = ItemIndex::of_task(task);
            assert_eq!((kept.task(), kept.get()), (Some(task), None));
            assert!(kept == None && kept != ItemIndex::NONE);
            assert_eq!(format!("{kept:?}"), format!("TaskId({number})"));
        }
        for none in [largest + 1, u64::MAX] {
            assert_eq!(ItemIndex::of_task(TaskId::of_number(none)), ItemIndex::NONE);
        }
        assert_eq!(ItemIndex::from(Some(largest as usize - 1)).task(), None);
    }

    #[test]
    fn b99_what_an_index_holds_is_written_and_read_again() {
        let task = TaskId::next();
        for (index, text) in [
            (ItemIndex::NONE, "null".to_owned()),
            (Some(7).into(), "7".to_owned()),
            (ItemIndex::of_task(task), format!("{{\"task\":{task}}}")),
        ] {
            assert_eq!(serde_json::to_string(&index).unwrap(), text);
            assert_eq!(serde_json::from_str::<ItemIndex>(&text).unwrap(), index);
        }
    }
}
