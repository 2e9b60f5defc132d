//! Which changes a process has heard of, and when it must have missed some. Pure.

/// Numbers that were heard beside counts that were read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heard {
    /// The number of the last change that was heard, or is known to have been missed; none before the first look.
    last: Option<u64>,
    /// The same when the count was asked for last: its answer may be older than what is heard meanwhile.
    asked: Option<u64>,
    /// The count as it was at the last look: what is not heard by the next one was missed.
    expected: u64,
}

impl Heard {
    /// Whether anything can be told to have been missed.
    pub(super) const fn has_begun(self) -> bool {
        self.last.is_some()
    }

    /// A change was heard; true when others before it were not.
    pub(super) fn hear(&mut self, number: u64) -> bool {
        let Some(last) = self.last else {
            return false;
        };
        self.last = Some(last.max(number));
        number > last.saturating_add(1)
    }

    /// The count is being read.
    pub(super) const fn ask(&mut self) {
        self.asked = self.last;
    }

    /// The count that was asked for was read; true when a change was made that was not heard, or may have been before the first look.
    pub(super) fn look(&mut self, count: u64, is_subscribed: bool) -> bool {
        // The server has lost data, or another one has taken its place.
        let is_another = self.asked.is_some_and(|asked| count < asked);
        let is_missed = is_another
            || match self.last {
                None => true,
                // What is published takes its time; without a subscription nothing will come.
                Some(last) => last < self.expected || (!is_subscribed && last != count),
            };
        if is_missed {
            let heard = self.last.filter(|_| is_subscribed && !is_another);
            self.last = Some(heard.map_or(count, |last| last.max(count)));
        }
        self.expected = count;
        is_missed
    }

    /// The subscription is a new one: what was changed meanwhile was not heard.
    pub(super) const fn begin_anew(&mut self) {
        (self.last, self.asked) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// A change whose message is on its way.
        Change,
        /// A change whose message is lost.
        Lost,
        Deliver,
        /// The count is read; its answer comes with the next step of this kind.
        Ask,
        Look,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Change),
            1 => Just(Step::Lost),
            4 => Just(Step::Deliver),
            1 => Just(Step::Ask),
            2 => Just(Step::Look),
        ]
    }

    /// The end of a run: what is on its way arrives, and two more looks.
    const END: [Step; 4] = [Step::Look, Step::Look, Step::Deliver, Step::Look];

    #[test]
    fn an_answer_that_is_older_than_what_was_heard_meanwhile_is_no_lost_data() {
        let mut heard = Heard::default();
        heard.look(4, true);
        assert!(!heard.hear(5));
        heard.ask();
        assert!(!heard.hear(6));
        assert!(!heard.look(5, true));
        heard.ask();
        assert!(!heard.look(6, true));
        heard.ask();
        assert!(heard.look(5, true), "now it is");
    }

    proptest! {
        #[test]
        fn whatever_is_lost_is_noticed_and_nothing_else_is_where_messages_are_quick(
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            let (mut heard, mut on_the_way) = (Heard::default(), VecDeque::new());
            prop_assert!(heard.look(0, true), "nothing is known before the first look");
            let (mut count, mut unnoticed, mut n_lost, mut is_late) = (0, false, 0, false);
            let (mut n_noticed, mut answer) = (0, None);
            for step in steps.into_iter().chain(END) {
                let is_noticed = match step {
                    Step::Change => {
                        count += 1;
                        on_the_way.push_back(count);
                        false
                    }
                    Step::Lost => {
                        count += 1;
                        (unnoticed, n_lost) = (true, n_lost + 1);
                        false
                    }
                    Step::Deliver => on_the_way
                        .drain(..)
                        .fold(false, |noticed, number| heard.hear(number) | noticed),
                    Step::Ask => {
                        heard.ask();
                        answer = Some(count);
                        false
                    }
                    Step::Look => {
                        let read = answer.take().unwrap_or_else(|| {
                            heard.ask();
                            count
                        });
                        is_late |= !on_the_way.is_empty();
                        heard.look(read, true)
                    }
                };
                if is_noticed {
                    (unnoticed, n_noticed) = (false, n_noticed + 1);
                }
            }
            prop_assert!(!unnoticed, "a change was lost and nothing was forgotten after it");
            prop_assert!(n_lost > 0 || is_late || n_noticed == 0, "forgot everything for nothing");
        }

        #[test]
        fn without_a_subscription_each_look_notices_each_change(counts in proptest::collection::vec(0..5_u64, 1..40)) {
            let mut heard = Heard::default();
            heard.ask();
            heard.look(0, false);
            let mut count = 0;
            for grown in counts {
                count += grown;
                heard.ask();
                prop_assert_eq!(heard.look(count, false), grown > 0);
            }
            heard.ask();
            prop_assert!(count == 0 || heard.look(count - 1, false), "a count that goes back is lost data");
        }
    }
}
