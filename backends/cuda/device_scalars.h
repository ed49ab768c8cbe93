// Scalar functions of the loop IR that C has not, or means otherwise (ir/ops/scalar.py says what each means).
//
// Included by device.h. Plain C++ without inline assembly: the same text serves the device and the host. The math functions
// of the C library are taken as they are where their meaning is the one that is asked for; a value of float16 or bfloat16
// is a float here, which the emitter rounds.

#pragma once

// What is unsigned and as wide: integers wrap by way of it.
template <typename T> struct tw_unsigned_of { typedef T type; };
template <> struct tw_unsigned_of<signed char> { typedef unsigned char type; };
template <> struct tw_unsigned_of<short> { typedef unsigned short type; };
template <> struct tw_unsigned_of<int> { typedef unsigned int type; };
template <> struct tw_unsigned_of<long long> { typedef unsigned long long type; };

template <typename T> TW_FUNCTION bool tw_is_signed(T) { return T(-1) < T(1); }
// Compared with 1, since compilers complain where an unsigned number is compared with 0.
template <typename T> TW_FUNCTION bool tw_is_negative(T a) { return a < T(1) && a != T(0); }

// --- integers: they wrap; division by zero gives 0, of the least by -1 itself ---

template <typename T> TW_FUNCTION T tw_neg(T a) {
  typedef typename tw_unsigned_of<T>::type U;
  return T(U(0) - U(a));
}
template <typename T> TW_FUNCTION T tw_abs(T a) { return tw_is_negative(a) ? tw_neg(a) : a; }
template <typename T> TW_FUNCTION T tw_sign(T a) { return T((a != T(0) && !tw_is_negative(a)) - tw_is_negative(a)); }
template <typename T> TW_FUNCTION T tw_max(T a, T b) { return a < b ? b : a; }
template <typename T> TW_FUNCTION T tw_min(T a, T b) { return b < a ? b : a; }

template <typename T> TW_FUNCTION T tw_rem(T a, T b) {
  return b == T(0) || (tw_is_signed(a) && b == T(-1)) ? T(0) : T(a % b);
}
template <typename T> TW_FUNCTION T tw_mod(T a, T b) {
  const T rest = tw_rem(a, b);
  return rest != T(0) && tw_is_negative(rest) != tw_is_negative(b) ? T(rest + b) : rest;
}
template <typename T> TW_FUNCTION T tw_floordiv(T a, T b) {
  if (b == T(0)) return T(0);
  if (tw_is_signed(a) && b == T(-1)) return tw_neg(a);
  const T quotient = T(a / b), rest = T(a % b);
  return rest != T(0) && tw_is_negative(rest) != tw_is_negative(b) ? T(quotient - T(1)) : quotient;
}

// Shifts by the width or more, or by less than 0, leave nothing but the sign.
template <typename T> TW_FUNCTION T tw_shl(T a, T b) {
  typedef typename tw_unsigned_of<T>::type U;
  return U(b) >= U(sizeof(T) * 8) ? T(0) : T((unsigned long long)(U(a)) << U(b));
}
template <typename T> TW_FUNCTION T tw_shr(T a, T b) {
  typedef typename tw_unsigned_of<T>::type U;
  if (U(b) >= U(sizeof(T) * 8)) return tw_is_negative(a) ? T(-1) : T(0);
  return T(a >> b);
}

template <typename T> TW_FUNCTION T tw_pow(T base, T exponent) {
  typedef typename tw_unsigned_of<T>::type U;
  if (tw_is_negative(exponent)) return base == T(1) ? T(1) : base == T(-1) ? (exponent & T(1)) != T(0) ? T(-1) : T(1) : T(0);
  unsigned long long result = 1, square = U(base);
  for (unsigned long long rest = (unsigned long long)exponent; rest != 0; rest >>= 1) {
    if (rest & 1) result *= square;
    square *= square;
  }
  return T(U(result));
}

// --- floats ---

TW_FUNCTION bool tw_isnan(float x) { return x != x; }
TW_FUNCTION bool tw_isnan(double x) { return x != x; }
TW_FUNCTION bool tw_isinf(float x) { return fabsf(x) == TW_INFINITY_F32; }
TW_FUNCTION bool tw_isinf(double x) { return fabs(x) == TW_INFINITY_F64; }

TW_FUNCTION float tw_neg(float x) { return -x; }
TW_FUNCTION double tw_neg(double x) { return -x; }
TW_FUNCTION float tw_abs(float x) { return fabsf(x); }
TW_FUNCTION double tw_abs(double x) { return fabs(x); }
TW_FUNCTION float tw_sign(float x) { return tw_isnan(x) ? x : float((x > 0.0f) - (x < 0.0f)); }
TW_FUNCTION double tw_sign(double x) { return tw_isnan(x) ? x : double((x > 0.0) - (x < 0.0)); }

// NaN if either is; of zeros the one whose sign decides.
TW_FUNCTION float tw_max(float a, float b) { return tw_isnan(a) ? a : tw_isnan(b) ? b : fmaxf(a, b); }
TW_FUNCTION double tw_max(double a, double b) { return tw_isnan(a) ? a : tw_isnan(b) ? b : fmax(a, b); }
TW_FUNCTION float tw_min(float a, float b) { return tw_isnan(a) ? a : tw_isnan(b) ? b : fminf(a, b); }
TW_FUNCTION double tw_min(double a, double b) { return tw_isnan(a) ? a : tw_isnan(b) ? b : fmin(a, b); }
TW_FUNCTION float tw_fmax(float a, float b) { return fmaxf(a, b); }
TW_FUNCTION double tw_fmax(double a, double b) { return fmax(a, b); }
TW_FUNCTION float tw_fmin(float a, float b) { return fminf(a, b); }
TW_FUNCTION double tw_fmin(double a, double b) { return fmin(a, b); }

TW_FUNCTION float tw_rem(float a, float b) { return fmodf(a, b); }
TW_FUNCTION double tw_rem(double a, double b) { return fmod(a, b); }
TW_FUNCTION double tw_mod(double a, double b) {
  const double rest = fmod(a, b);
  if (b == 0.0 || tw_isnan(rest)) return rest;
  if (rest == 0.0) return copysign(0.0, b);
  return (b < 0.0) != (rest < 0.0) ? rest + b : rest;
}
TW_FUNCTION float tw_mod(float a, float b) {
  const float rest = fmodf(a, b);
  if (b == 0.0f || tw_isnan(rest)) return rest;
  if (rest == 0.0f) return copysignf(0.0f, b);
  return (b < 0.0f) != (rest < 0.0f) ? rest + b : rest;
}
// The quotient of what the remainder leaves, rounded to the whole number that it is but for rounding.
TW_FUNCTION double tw_floordiv(double a, double b) {
  if (b == 0.0) return a / b;
  const double rest = fmod(a, b);
  double quotient = (a - rest) / b;
  if (rest != 0.0 && (b < 0.0) != (rest < 0.0)) quotient -= 1.0;
  if (quotient == 0.0) return copysign(0.0, a / b);
  const double whole = floor(quotient);
  return quotient - whole > 0.5 ? whole + 1.0 : whole;
}
TW_FUNCTION float tw_floordiv(float a, float b) {
  if (b == 0.0f) return a / b;
  const float rest = fmodf(a, b);
  float quotient = (a - rest) / b;
  if (rest != 0.0f && (b < 0.0f) != (rest < 0.0f)) quotient -= 1.0f;
  if (quotient == 0.0f) return copysignf(0.0f, a / b);
  const float whole = floorf(quotient);
  return quotient - whole > 0.5f ? whole + 1.0f : whole;
}

TW_FUNCTION float tw_exp(float x) { return expf(x); }
TW_FUNCTION double tw_exp(double x) { return exp(x); }
TW_FUNCTION float tw_exp2(float x) { return exp2f(x); }
TW_FUNCTION double tw_exp2(double x) { return exp2(x); }
TW_FUNCTION float tw_expm1(float x) { return expm1f(x); }
TW_FUNCTION double tw_expm1(double x) { return expm1(x); }
TW_FUNCTION float tw_log(float x) { return logf(x); }
TW_FUNCTION double tw_log(double x) { return log(x); }
TW_FUNCTION float tw_log2(float x) { return log2f(x); }
TW_FUNCTION double tw_log2(double x) { return log2(x); }
TW_FUNCTION float tw_log10(float x) { return log10f(x); }
TW_FUNCTION double tw_log10(double x) { return log10(x); }
TW_FUNCTION float tw_log1p(float x) { return log1pf(x); }
TW_FUNCTION double tw_log1p(double x) { return log1p(x); }
TW_FUNCTION float tw_sqrt(float x) { return sqrtf(x); }
TW_FUNCTION double tw_sqrt(double x) { return sqrt(x); }
TW_FUNCTION float tw_cbrt(float x) { return cbrtf(x); }
TW_FUNCTION double tw_cbrt(double x) { return cbrt(x); }
TW_FUNCTION float tw_sin(float x) { return sinf(x); }
TW_FUNCTION double tw_sin(double x) { return sin(x); }
TW_FUNCTION float tw_cos(float x) { return cosf(x); }
TW_FUNCTION double tw_cos(double x) { return cos(x); }
TW_FUNCTION float tw_tan(float x) { return tanf(x); }
TW_FUNCTION double tw_tan(double x) { return tan(x); }
TW_FUNCTION float tw_asin(float x) { return asinf(x); }
TW_FUNCTION double tw_asin(double x) { return asin(x); }
TW_FUNCTION float tw_acos(float x) { return acosf(x); }
TW_FUNCTION double tw_acos(double x) { return acos(x); }
TW_FUNCTION float tw_atan(float x) { return atanf(x); }
TW_FUNCTION double tw_atan(double x) { return atan(x); }
TW_FUNCTION float tw_sinh(float x) { return sinhf(x); }
TW_FUNCTION double tw_sinh(double x) { return sinh(x); }
TW_FUNCTION float tw_cosh(float x) { return coshf(x); }
TW_FUNCTION double tw_cosh(double x) { return cosh(x); }
TW_FUNCTION float tw_tanh(float x) { return tanhf(x); }
TW_FUNCTION double tw_tanh(double x) { return tanh(x); }
TW_FUNCTION float tw_asinh(float x) { return asinhf(x); }
TW_FUNCTION double tw_asinh(double x) { return asinh(x); }
TW_FUNCTION float tw_acosh(float x) { return acoshf(x); }
TW_FUNCTION double tw_acosh(double x) { return acosh(x); }
TW_FUNCTION float tw_atanh(float x) { return atanhf(x); }
TW_FUNCTION double tw_atanh(double x) { return atanh(x); }
TW_FUNCTION float tw_erf(float x) { return erff(x); }
TW_FUNCTION double tw_erf(double x) { return erf(x); }
TW_FUNCTION float tw_floor(float x) { return floorf(x); }
TW_FUNCTION double tw_floor(double x) { return floor(x); }
TW_FUNCTION float tw_ceil(float x) { return ceilf(x); }
TW_FUNCTION double tw_ceil(double x) { return ceil(x); }
TW_FUNCTION float tw_trunc(float x) { return truncf(x); }
TW_FUNCTION double tw_trunc(double x) { return trunc(x); }
TW_FUNCTION float tw_round(float x) { return rintf(x); }
TW_FUNCTION double tw_round(double x) { return rint(x); }
TW_FUNCTION float tw_pow(float x, float y) { return powf(x, y); }
TW_FUNCTION double tw_pow(double x, double y) { return pow(x, y); }
TW_FUNCTION float tw_atan2(float y, float x) { return atan2f(y, x); }
TW_FUNCTION double tw_atan2(double y, double x) { return atan2(y, x); }
TW_FUNCTION float tw_hypot(float x, float y) { return hypotf(x, y); }
TW_FUNCTION double tw_hypot(double x, double y) { return hypot(x, y); }
TW_FUNCTION float tw_copysign(float x, float y) { return copysignf(x, y); }
TW_FUNCTION double tw_copysign(double x, double y) { return copysign(x, y); }
TW_FUNCTION float tw_fma(float a, float b, float c) { return fmaf(a, b, c); }
TW_FUNCTION double tw_fma(double a, double b, double c) { return fma(a, b, c); }

// The exponential of what is not positive: it can not overflow.
TW_FUNCTION float tw_sigmoid(float x) {
  const float power = expf(-fabsf(x));
  return (x >= 0.0f ? 1.0f : power) / (1.0f + power);
}
TW_FUNCTION double tw_sigmoid(double x) {
  const double power = exp(-fabs(x));
  return (x >= 0.0 ? 1.0 : power) / (1.0 + power);
}

// --- casts of floats to integers: towards zero, limited, NaN gives 0 ---

// `least` and `past` are powers of two (or 0), so they are exact in both float types: `past` is one more than the greatest.
template <typename T, typename F> TW_FUNCTION T tw_cast_limited(F x, F least, F past, T lowest, T highest) {
  return x != x ? T(0) : x < least ? lowest : x >= past ? highest : T(x);
}
template <typename F> TW_FUNCTION signed char tw_cast_i8(F x) {
  return tw_cast_limited<signed char, F>(x, F(-128), F(128), -128, 127);
}
template <typename F> TW_FUNCTION short tw_cast_i16(F x) {
  return tw_cast_limited<short, F>(x, F(-32768), F(32768), -32768, 32767);
}
template <typename F> TW_FUNCTION int tw_cast_i32(F x) {
  return tw_cast_limited<int, F>(x, F(-2147483648.0), F(2147483648.0), -2147483647 - 1, 2147483647);
}
template <typename F> TW_FUNCTION long long tw_cast_i64(F x) {
  return tw_cast_limited<long long, F>(x, F(-9223372036854775808.0), F(9223372036854775808.0), -9223372036854775807LL - 1,
                                       9223372036854775807LL);
}
template <typename F> TW_FUNCTION unsigned char tw_cast_u8(F x) {
  return tw_cast_limited<unsigned char, F>(x, F(0), F(256), 0, 255);
}
template <typename F> TW_FUNCTION unsigned short tw_cast_u16(F x) {
  return tw_cast_limited<unsigned short, F>(x, F(0), F(65536), 0, 65535);
}
template <typename F> TW_FUNCTION unsigned int tw_cast_u32(F x) {
  return tw_cast_limited<unsigned int, F>(x, F(0), F(4294967296.0), 0u, 4294967295u);
}
template <typename F> TW_FUNCTION unsigned long long tw_cast_u64(F x) {
  return tw_cast_limited<unsigned long long, F>(x, F(0), F(18446744073709551616.0), 0ull, 18446744073709551615ull);
}

// --- words of narrow integers ---

TW_FUNCTION int tw_dot_pairs(int a, int b, int c) {
  const unsigned low = unsigned(int(short(a)) * int(short(b)));
  const unsigned high = unsigned((a >> 16) * (b >> 16));
  return int(low + high + unsigned(c));
}
// The unsigned byte of `a` times the signed one of `b` at a place of the words.
TW_FUNCTION int tw_byte_product(int a, int b, int place) {
  return int((unsigned(a) >> (8 * place)) & 255u) * int((signed char)(unsigned(b) >> (8 * place)));
}
TW_FUNCTION int tw_dot_quads(int a, int b, int c) {
  int sum = 0;
  for (int place = 0; place < 4; ++place) sum += tw_byte_product(a, b, place);
  return int(unsigned(sum) + unsigned(c));
}
TW_FUNCTION int tw_dot_quads_saturating(int a, int b, int c) {
  const int low = tw_byte_product(a, b, 0) + tw_byte_product(a, b, 1), high = tw_byte_product(a, b, 2) + tw_byte_product(a, b, 3);
  const int sum = tw_max(tw_min(low, 32767), -32768) + tw_max(tw_min(high, 32767), -32768);
  return int(unsigned(sum) + unsigned(c));
}
TW_FUNCTION int tw_add_byte_pairs(int a, int b, int c) {
  const int low = tw_byte_product(a, b, 0) + tw_byte_product(a, b, 1), high = tw_byte_product(a, b, 2) + tw_byte_product(a, b, 3);
  const unsigned first = unsigned(tw_max(tw_min(low, 32767), -32768)) + (unsigned(c) & 65535u);
  const unsigned second = unsigned(tw_max(tw_min(high, 32767), -32768)) + (unsigned(c) >> 16);
  return int((first & 65535u) | (second << 16));
}
// A float with what is not normal as zero.
TW_FUNCTION float tw_flushed(float x) { return fabsf(x) < 1.17549435e-38f ? copysignf(0.0f, x) : x; }
TW_FUNCTION float tw_dot_bfloats(unsigned int a, unsigned int b, float c) {
  float sum = tw_flushed(c);
  for (int shift = 0; shift <= 16; shift += 16) {  // the upper halves, then the lower ones
    const float x = tw_flushed(tw_float_from_bits(int((a << shift) & 0xffff0000u)));
    const float y = tw_flushed(tw_float_from_bits(int((b << shift) & 0xffff0000u)));
    sum = tw_flushed(tw_fma(x, y, sum));
  }
  return sum;
}
TW_FUNCTION int tw_widen_pairs(short pair) {
  const unsigned low = (unsigned short)short((signed char)pair), high = (unsigned short)short(pair >> 8);
  return int(low | (high << 16));
}
