//! One source, compiled for several instruction sets and chosen at run time: a portable build is as fast as a native one.

/// Instruction sets the loops of this crate are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// What every CPU of the target has.
    Baseline,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// 512-bit vectors.
    Avx512,
}

/// The best level of this CPU; the standard library caches the answer.
#[inline]
pub(crate) fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
        {
            return Level::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Level::Avx2;
        }
    }
    Level::Baseline
}

/// Defines a function whose body is compiled once per [`Level`]. The body must not depend on fused multiply-add
/// (plain Rust never fuses), so that every level gives the same bits. One type parameter with one bound may follow the
/// name.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$T:ident: $bound:ident>)? ($($arg:ident: $ty:ty),* $(,)?)
        $body:block) => {
        $(#[$meta])*
        #[expect(clippy::allow_attributes, reason = "not every expansion has many arguments")]
        #[allow(clippy::too_many_arguments, reason = "the operands of one loop")]
        $vis fn $name $(<$T: $bound>)? ($($arg: $ty),*) {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "the operands of one loop")]
            fn body $(<$T: $bound>)? ($($arg: $ty),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
            #[allow(clippy::too_many_arguments, reason = "the operands of one loop")]
            fn avx512 $(<$T: $bound>)? ($($arg: $ty),*) {
                body $(::<$T>)? ($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments, reason = "the operands of one loop")]
            fn avx2 $(<$T: $bound>)? ($($arg: $ty),*) {
                body $(::<$T>)? ($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            match $crate::kernels::simd::level() {
                #[expect(unsafe_code, reason = "calls a function compiled for more than the target's baseline")]
                // SAFETY: `level` has found every feature the function is compiled for on this CPU.
                $crate::kernels::simd::Level::Avx512 => return unsafe { avx512 $(::<$T>)? ($($arg),*) },
                #[expect(unsafe_code, reason = "calls a function compiled for more than the target's baseline")]
                // SAFETY: as above.
                $crate::kernels::simd::Level::Avx2 => return unsafe { avx2 $(::<$T>)? ($($arg),*) },
                $crate::kernels::simd::Level::Baseline => {}
            }
            body $(::<$T>)? ($($arg),*)
        }
    };
}
pub(crate) use multiversion;
