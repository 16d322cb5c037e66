// The forward pass: tiles of queries against segments of packed keys and values, with an online softmax (Milakov and
// Gimelshein 2018). A window that fits a segment meets one, and then nothing is rescaled.

namespace sinmdm::cpu::window::SINMDM_ISA {

// A tile of queries of the heads `h` .. `h + heads` of a sequence of n frames, cut into strips.
struct Tile {
  int64_t b, h, heads, n;
  Range queries;
  int64_t strips;
};

template <typename C>
struct ForwardBuffers {
  Panels<C> keys, values;  // key head by key head, of a segment
  Panels<C> rows;          // query head by query head, of a strip
  Panels<C> out;           // of the tile, head by head, as are the following
  C* columns;              // strip by strip: (dim, W)
  C *highest, *total;      // a running maximum, and the sum of the weights relative to it
  C *scores, *keep;        // (segment, W)
  Strip* strips;
};

// Strip j of head tile.h + i against the slots of `segment`: s.scores become weights, their products are added to
// s.out.
template <typename C, int Q>
SINMDM_TARGET void attend_strip(const Forward& p, const Tile& tile, int64_t i, int64_t j, Range segment, bool exact,
                                const ForwardBuffers<C>& s) {
  constexpr int64_t L = kLanes<C>, W = Q * L;
  constexpr C kNever = -std::numeric_limits<C>::infinity();
  const Strip& strip = s.strips[j];
  const Range slots = strip.slots.clipped(segment);
  if (slots.size() == 0) return;
  const int64_t h = tile.h + i, first_key = (h / p.group() - tile.h / p.group()) * p.segment();
  const int64_t at = (i * tile.strips + j) * W;
  const bool drops = p.dropout_p > 0, first = slots.begin == strip.slots.begin;
  const C* table = p.table == nullptr ? nullptr
                                      : static_cast<const C*>(p.table) + h * p.pitch() +
                                            table_index(p, slots.begin - strip.query + strip.origin);
  score_rows<C, Q>(s.keys, first_key + slots.begin - segment.begin, slots.size(), s.columns + at * p.dim, nullptr,
                   table, s.scores);
  if (drops) keep_factors<C>(p, strip, tile.b, h, tile.n, slots, W, s.keep);

  const Sight<C, Q> sight(strip, slots);
  alignas(64) C factor[W];
  for (int q = 0; q < Q; ++q) {
    C *highest = s.highest + at + q * L, *sum = s.total + at + q * L;
    const V<C> before = first ? V<C>{} + kNever : load<C>(highest);
    V<C> high = before;
    for (int64_t r = 0; r < slots.size(); ++r) {
      V<C> score = load<C>(s.scores + r * W + q * L);
      if (!sight.all(r)) {
        score = sight.row(r, q) ? score : V<C>{} + kNever;
        store<C>(s.scores + r * W + q * L, score);
      }
      high = score > high ? score : high;
    }
    const V<C> zero = high == kNever ? V<C>{} : high;  // what is subtracted: a query may see nothing at all
    const V<C> rescale = exp2_weight<C>(before - zero);
    V<C> total{};
    for (int64_t r = 0; r < slots.size(); ++r) {
      V<C> weight = exp2_weight<C>(load<C>(s.scores + r * W + q * L) - zero);
      total += weight;
      if (drops) weight *= load<C>(s.keep + r * W + q * L);
      store<C>(s.scores + r * W + q * L, weight);
    }
    store<C>(highest, high);
    store<C>(sum, first ? total : load<C>(sum) * rescale + total);
    store<C>(factor + q * L, rescale);
  }
  gather_rows<C, Q>(strip, s.scores, slots, s.values, segment.begin - first_key, first ? nullptr : factor, exact, s.out,
                    at);
}

template <typename C, int Q>
SINMDM_TARGET void attend(const Forward& p, const Tile& tile, bool exact, const ForwardBuffers<C>& s) {
  const Range all{s.strips[0].slots.begin, s.strips[tile.strips - 1].slots.end};
  const int64_t segments = (all.size() + p.segment() - 1) / p.segment();
  const int64_t kv_head = tile.h / p.group(), kv_heads = (tile.h + tile.heads - 1) / p.group() - kv_head + 1;
  for (int64_t part = 0; part < segments; ++part) {
    const Range segment{all.begin + all.size() * part / segments, all.begin + all.size() * (part + 1) / segments};
    pack<C>(p, p.k, tile.b, kv_head, kv_heads, tile.n, segment, s.keys, p.segment());
    pack<C>(p, p.v, tile.b, kv_head, kv_heads, tile.n, segment, s.values, p.segment());
    for (int64_t i = 0; i < tile.heads; ++i) {
      for (int64_t j = 0; j < tile.strips; ++j) attend_strip<C, Q>(p, tile, i, j, segment, exact, s);
    }
  }
}

template <typename C, int Q>
SINMDM_TARGET void forward_tile(const Forward& p, Tile tile, const ForwardBuffers<C>& s) {
  constexpr int64_t W = Q * kLanes<C>;
  C* lse = static_cast<C*>(p.lse);
  for (int64_t t = std::max(tile.queries.begin, tile.n); t < tile.queries.end; ++t) {
    for (int64_t h = tile.h; h < tile.h + tile.heads; ++h) {
      std::memset(p.out.at(tile.b, t, h), 0, p.dim * bytes_of(p.element));
      lse[p.lse_at(tile.b, t, h)] = -std::numeric_limits<C>::infinity();
    }
  }
  tile.queries.end = std::min(tile.queries.end, tile.n);
  if (tile.queries.begin >= tile.queries.end) return;

  tile.strips = (tile.queries.size() + W - 1) / W;
  for (int64_t j = 0; j < tile.strips; ++j) {
    const Strip strip = s.strips[j] = strip_of(p, tile.n, tile.queries.begin + j * W, tile.queries.end, W);
    pack<C>(p, p.q, tile.b, tile.h, tile.heads, tile.n, {strip.query, strip.query + strip.lanes}, s.rows, W);
    for (int64_t i = 0; i < tile.heads; ++i) {
      transpose<C>(s.rows, i * W, strip.lanes, W, static_cast<C>(p.scale * kLog2E),
                   s.columns + (i * tile.strips + j) * W * p.dim);
    }
  }
  for (const bool exact : {false, true}) {
    attend<C, Q>(p, tile, exact, s);
    C check = 0;
    for (int64_t t = tile.queries.begin; t < tile.queries.end; ++t) {
      for (int64_t i = 0; i < tile.heads; ++i) {
        const int64_t at = i * tile.strips * W + t - tile.queries.begin;
        const C total = s.total[at];  // 0 where a query sees nothing
        check += s.out.store_to(p.element, at, total == 0 ? C(0) : 1 / total, p.out.at(tile.b, t, tile.h + i));
        lse[p.lse_at(tile.b, t, tile.h + i)] = static_cast<C>(s.highest[at] * kLn2 + std::log(total));
      }
    }
    if (check == 0) break;
  }
}

template <typename C, int Q>
SINMDM_TARGET void forward_tasks(const Forward& p, int64_t begin, int64_t end) {
  constexpr int64_t W = Q * kLanes<C>;
  const int64_t heads = p.task_heads(), blocks = p.heads / heads;
  const int64_t strips = (std::min(p.tile(), p.frames) + W - 1) / W, lanes = heads * strips * W;
  const int64_t keys = std::max<int64_t>(heads / p.group(), 1) * p.segment();
  const int64_t pairs = p.segment() * W, keeps = p.dropout_p > 0 ? pairs : 0;
  const auto panels = [&p](int64_t rows) { return Scratch::bytes<C>(Panels<C>::size(rows, p.dim)); };
  Scratch scratch(2 * panels(keys) + panels(heads * W) + panels(lanes) + Scratch::bytes<C>(lanes * p.dim) +
                  2 * Scratch::bytes<C>(lanes) + Scratch::bytes<C>(pairs) + Scratch::bytes<C>(keeps) +
                  Scratch::bytes<Strip>(strips));
  const auto take = [&](int64_t rows) { return Panels<C>{scratch.take<C>(Panels<C>::size(rows, p.dim)), rows, p.dim}; };
  ForwardBuffers<C> s;
  s.keys = take(keys), s.values = take(keys), s.rows = take(heads * W), s.out = take(lanes);
  s.columns = scratch.take<C>(lanes * p.dim);
  s.highest = scratch.take<C>(lanes), s.total = scratch.take<C>(lanes);
  s.scores = scratch.take<C>(pairs), s.keep = scratch.take<C>(keeps);
  s.strips = scratch.take<Strip>(strips);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / blocks / p.tiles(), first = task / blocks % p.tiles() * p.tile();
    const Range queries{first, std::min(first + p.tile(), p.frames)};
    forward_tile<C, Q>(p, {b, task % blocks * heads, heads, p.length(b), queries, 0}, s);
  }
}

}  // namespace sinmdm::cpu::window::SINMDM_ISA
