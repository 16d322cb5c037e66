// Softmax weights, and rows of any dtype, on the vectors of cpu/simd.h. No include guard: each set includes it once,
// after that file.

namespace sinmdm::cpu::SINMDM_ISA {

// 2^f for f in [-1/2, 1/2]. float: fitted for the least relative error, 2e-9 before rounding. double: the series.
SINMDM_KERNEL V<float> exp2_fraction(V<float> f) {
  V<float> p = 0.00015353360504377633f * f + 0.0013398875016719103f;
  p = p * f + 0.00961843691766262f;
  p = p * f + 0.055503323674201965f;
  p = p * f + 0.24022647738456726f;
  p = p * f + 0.6931471824645996f;
  return p * f + 1.0f;
}

SINMDM_KERNEL V<double> exp2_fraction(V<double> f) {
  V<double> p = 1.3691488853904124e-12 * f + 2.5678435993488196e-11;
  p = p * f + 4.44553827187081e-10;
  p = p * f + 7.054911620801121e-09;
  p = p * f + 1.0178086009239696e-07;
  p = p * f + 1.3215486790144305e-06;
  p = p * f + 1.5252733804059838e-05;
  p = p * f + 0.00015403530393381606;
  p = p * f + 0.0013333558146428441;
  p = p * f + 0.009618129107628477;
  p = p * f + 0.055504108664821576;
  p = p * f + 0.2402265069591007;
  p = p * f + 0.6931471805599453;
  return p * f + 1.0;
}

// 2^x for x up to about 0, where it is a softmax weight: what would be subnormal is 0, NaN stays NaN.
template <typename C>
SINMDM_KERNEL V<C> exp2_weight(V<C> x) {
  constexpr bool single = sizeof(C) == 4;
  constexpr int mantissa = single ? 23 : 52, bias = single ? 127 : 1023;
  constexpr C shifter = single ? C(12582912.0) : C(6755399441055744.0);  // 1.5 * 2^mantissa: adding it rounds
  const V<C> shifted = x + shifter;
  const V<C> f = x - (shifted - shifter);
  const V<C> shifter_vector = V<C>{} + shifter;
  const I<C> n = bits<C>(shifted) - bits<C>(shifter_vector);
  const V<C> power = from_bits<C>((n + bias) << mantissa);
  return x < C(1 - bias) ? V<C>{} : exp2_fraction(f) * power;
}

template <typename C>
SINMDM_KERNEL void load_row(Element element, const char* from, int64_t count, C* to) {
  if constexpr (sizeof(C) == 8) {
    widen(reinterpret_cast<const double*>(from), count, to);
  } else if (element == Element::float32) {
    widen(reinterpret_cast<const float*>(from), count, to);
  } else if (element == Element::bfloat16) {
    widen_bfloat16(reinterpret_cast<const uint16_t*>(from), count, to);
  } else {
    widen_float16(reinterpret_cast<const uint16_t*>(from), count, to);
  }
}

template <typename C>
SINMDM_KERNEL void store_row(Element element, const C* from, int64_t count, char* to) {
  if constexpr (sizeof(C) == 8) {
    widen(from, count, reinterpret_cast<double*>(to));
  } else if (element == Element::float32) {
    widen(from, count, reinterpret_cast<float*>(to));
  } else if (element == Element::bfloat16) {
    narrow_bfloat16(from, count, reinterpret_cast<uint16_t*>(to));
  } else {
    narrow_float16(from, count, reinterpret_cast<uint16_t*>(to));
  }
}

}  // namespace sinmdm::cpu::SINMDM_ISA
