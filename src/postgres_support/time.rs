//! Points of time in a column of `timestamptz`, to the microsecond and without a floating-point number between.

use sqlx::{
    Decode, Encode, Postgres, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueFormat, PgValueRef},
};

use crate::clock::Timestamp;

/// PostgreSQL counts from 2000-01-01T00:00:00Z.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A [`Timestamp`] as PostgreSQL's `timestamptz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PgMicros(pub(crate) Timestamp);

#[derive(Debug, thiserror::Error)]
#[error("a point of time from 1970 to 9999 was expected")]
struct OutOfRange;

impl Type<Postgres> for PgMicros {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("timestamptz")
    }
}

impl PgHasArrayType for PgMicros {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("timestamptz[]")
    }
}

impl Encode<'_, Postgres> for PgMicros {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let micros = i64::try_from(self.0.as_unix_micros())?.saturating_sub(EPOCH_MICROS);
        <i64 as Encode<'_, Postgres>>::encode_by_ref(&micros, buffer)
    }
}

impl<'r> Decode<'r, Postgres> for PgMicros {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        // Whatever has parameters or is prepared answers in this format.
        if value.format() != PgValueFormat::Binary {
            return Err("a point of time was expected in the binary format".into());
        }
        let micros = i64::from_be_bytes(value.as_bytes()?.try_into()?);
        // Before 1970, or one of the two infinities.
        let micros = micros
            .checked_add(EPOCH_MICROS)
            .and_then(|micros| u64::try_from(micros).ok())
            .filter(|micros| *micros <= Timestamp::MAX.as_unix_micros())
            .ok_or(OutOfRange)?;
        Ok(Self(Timestamp::from_unix_micros(micros)))
    }
}
