// The backward pass, in one walk over the pairs: with P the weights, dP = dO V^T and delta = rowsum(dO O) - dlse,
//   dS = P (dP - delta), dQ = scale dS K, dK = scale dS^T Q, dV = P^T dO, dbias[o] = the sum of dS along diagonal o
// (Dao et al. 2022, appendix B). The bias gradient is added up by column and lane, and its diagonals once a task.

namespace sinmdm::cpu::window::SINMDM_ISA {

template <typename C>
struct BackwardBuffers {
  Panels<C> keys, values;           // key head by key head, of a segment
  Panels<C> dkeys, dvalues;         // key head by key head, of the chunk's own frames
  Panels<C> query_rows, grad_rows;  // query head by query head, of a batch of strips
  Panels<C> out_row;                // one
  Panels<C> dqueries;               // query head by query head, of the chunk rounded up to whole strips
  C *query_columns, *grad_columns;  // of a strip: (dim, W)
  C *delta, *score_base;            // like query_rows, without the channels
  C *weights, *dscores, *keep;      // (segment, W)
  C* dbias;                         // (heads, columns + W, W): row c + l, lane l has its share of column c
  Strip* strips;                    // of a batch
};

// Strips whose queries are packed together: they meet the same keys while these are near.
constexpr int64_t kBatch = 4;

// The frames and key heads whose gradients are being computed.
struct Chunk {
  int64_t b, kv_head, kv_heads, n;
  Range own;
};

// Packs the queries and output gradients of a batch of strips, and what their rows add to the scores: -lse in units of
// log 2, and delta.
template <typename C, int Q>
SINMDM_TARGET void pack_queries(const Backward& p, const Chunk& chunk, Range queries, const BackwardBuffers<C>& s) {
  constexpr int64_t L = kLanes<C>, rows = kBatch * Q * L;
  const int64_t h = chunk.kv_head * p.group(), heads = chunk.kv_heads * p.group();
  pack<C>(p, p.q, chunk.b, h, heads, chunk.n, queries, s.query_rows, rows);
  pack<C>(p, p.grad_out, chunk.b, h, heads, chunk.n, queries, s.grad_rows, rows);
  for (int64_t query = queries.begin; query < queries.end; ++query) {
    const int64_t frame = p.frame_of(query, chunk.n);
    for (int64_t i = 0; i < heads; ++i) {
      const int64_t row = i * rows + query - queries.begin, at = p.lse_at(chunk.b, frame, h + i);
      s.out_row.load_from(p.element, p.out.at(chunk.b, frame, h + i), 0);
      V<C> product{};
      for (int64_t panel = 0; panel < s.out_row.count(); ++panel) {
        const C *grad = s.grad_rows.at(panel, row), *out = s.out_row.at(panel, 0);
        for (int64_t c = 0; c < s.out_row.width(panel); c += L) product += load<C>(grad + c) * load<C>(out + c);
      }
      C delta = 0;
      for (int64_t l = 0; l < L; ++l) delta += product[l];
      s.delta[row] = p.grad_lse == nullptr ? delta : delta - static_cast<const C*>(p.grad_lse)[at];
      // A query that sees nothing has lse = -inf; its weights are 0.
      const C lse = static_cast<const C*>(p.lse)[at];
      const bool blind = lse == -std::numeric_limits<C>::infinity();
      s.score_base[row] = blind ? lse : static_cast<C>(-lse * kLog2E);
    }
  }
}

// Strip j of the batch, of the chunk's i-th query head, against the slots of a segment: adds to s.dkeys, s.dvalues and,
// where the queries are the chunk's own, to s.dbias and s.dqueries (or sets these, where `first`).
template <typename C, int Q>
SINMDM_TARGET void strip_gradients(const Backward& p, const Chunk& chunk, int64_t i, int64_t j, Range segment, bool own,
                                   bool first, bool exact, const BackwardBuffers<C>& s) {
  constexpr int64_t L = kLanes<C>, W = Q * L;
  const Strip& strip = s.strips[j];
  const Range slots = strip.slots.clipped(own ? segment : segment.clipped(chunk.own));
  if (slots.size() == 0) return;
  const int64_t h = chunk.kv_head * p.group() + i, first_key = i / p.group() * p.segment();
  const int64_t query_row = (i * kBatch + j) * W;
  alignas(64) C product_base[W], ones[W];
  for (int64_t lane = 0; lane < W; ++lane) {
    product_base[lane] = lane < strip.lanes ? -s.delta[query_row + lane] : C(0);
    ones[lane] = 1;
  }
  transpose<C>(s.query_rows, query_row, strip.lanes, W, static_cast<C>(p.scale * kLog2E), s.query_columns);
  transpose<C>(s.grad_rows, query_row, strip.lanes, W, C(1), s.grad_columns);

  const bool drops = p.dropout_p > 0;
  const int64_t column = slots.begin - strip.query + strip.origin;
  const int64_t row = first_key + slots.begin - segment.begin;
  const C* table =
      p.table == nullptr ? nullptr : static_cast<const C*>(p.table) + h * p.pitch() + table_index(p, column);
  score_rows<C, Q>(s.keys, row, slots.size(), s.query_columns, s.score_base + query_row, table, s.weights);
  score_rows<C, Q>(s.values, row, slots.size(), s.grad_columns, drops ? nullptr : product_base, nullptr, s.dscores);
  if (drops) keep_factors<C>(p, strip, chunk.b, h, chunk.n, slots, W, s.keep);

  const Sight<C, Q> sight(strip, slots);
  C* dbias = own && s.dbias != nullptr ? s.dbias + (i * (p.columns() + W) + column) * W : nullptr;
  for (int64_t r = 0; r < slots.size(); ++r) {
    for (int q = 0; q < Q; ++q) {
      const int64_t place = r * W + q * L;
      V<C> weight = exp2_weight<C>(load<C>(s.weights + place)), dscore = load<C>(s.dscores + place), dropped;
      if (drops) {
        const V<C> keep = load<C>(s.keep + place);
        dscore = weight * (dscore * keep + load<C>(product_base + q * L));
        dropped = weight * keep;
      } else {
        dscore *= weight;
        dropped = weight;
      }
      if (!sight.all(r)) {
        const I<C> visible = sight.row(r, q);
        dscore = visible ? dscore : V<C>{};
        dropped = visible ? dropped : V<C>{};
      }
      store<C>(s.weights + place, dropped);
      store<C>(s.dscores + place, dscore);
      if (dbias != nullptr) store<C>(dbias + place, load<C>(dbias + place) + dscore);
    }
  }

  if (own) {
    const int64_t rows = (p.chunk() + W - 1) / W * W;
    gather_rows<C, Q>(strip, s.dscores, slots, s.keys, segment.begin - first_key, first ? nullptr : ones, exact,
                      s.dqueries, i * rows + strip.query - chunk.own.begin);
  }
  const Range keys = slots.clipped(chunk.own);
  const int64_t skip = (keys.begin - slots.begin) * W, origin = chunk.own.begin - i / p.group() * p.chunk();
  scatter_rows<C, Q>(strip, s.weights + skip, keys, s.grad_rows, query_row, exact, s.dvalues, origin);
  scatter_rows<C, Q>(strip, s.dscores + skip, keys, s.query_rows, query_row, exact, s.dkeys, origin);
}

// Queries `part`, the chunk's own or those beyond one of its ends, against the slots of a segment.
template <typename C, int Q>
SINMDM_TARGET void part_gradients(const Backward& p, const Chunk& chunk, Range part, Range segment, bool own,
                                  bool first, bool exact, const BackwardBuffers<C>& s) {
  constexpr int64_t W = Q * kLanes<C>;
  for (int64_t query = part.begin; query < part.end; query += kBatch * W) {
    const Range batch{query, std::min(query + kBatch * W, part.end)};
    const int64_t count = (batch.size() + W - 1) / W;
    for (int64_t j = 0; j < count; ++j) s.strips[j] = strip_of(p, chunk.n, query + j * W, batch.end, W);
    const Range slots{s.strips[0].slots.begin, s.strips[count - 1].slots.end};
    if (slots.clipped(own ? segment : segment.clipped(chunk.own)).size() == 0) continue;
    pack_queries<C, Q>(p, chunk, batch, s);
    for (int64_t i = 0; i < chunk.kv_heads * p.group(); ++i) {
      for (int64_t j = 0; j < count; ++j) strip_gradients<C, Q>(p, chunk, i, j, segment, own, first, exact, s);
    }
  }
}

// dq, dk and dv of a chunk's own frames; false where one is not finite. s.dbias is left alone where `exact`: its terms
// are pairs, to which nothing is carried from elsewhere, and they have been added before.
template <typename C, int Q>
SINMDM_TARGET bool chunk_gradients(const Backward& p, const Chunk& chunk, bool exact, BackwardBuffers<C> s) {
  constexpr int64_t W = Q * kLanes<C>;
  const int64_t n = chunk.n, h = chunk.kv_head * p.group(), rows = (p.chunk() + W - 1) / W * W;
  const Range own = chunk.own;
  const C scale = static_cast<C>(p.scale);
  if (exact) s.dbias = nullptr;
  const Range queries = seeing_queries(p, n, own);
  const Range all{visible_slots(p, n, own.begin).begin, visible_slots(p, n, own.end - 1).end};
  const int64_t segments = (all.size() + p.segment() - 1) / p.segment();
  const bool once = segments == 1;  // then each dq has one sum
  if (!once) s.dqueries.clear();
  s.dkeys.clear();
  s.dvalues.clear();
  C check = 0;
  for (int64_t i = 0; i < segments; ++i) {
    const Range segment{all.begin + all.size() * i / segments, all.begin + all.size() * (i + 1) / segments};
    pack<C>(p, p.k, chunk.b, chunk.kv_head, chunk.kv_heads, n, segment, s.keys, p.segment());
    pack<C>(p, p.v, chunk.b, chunk.kv_head, chunk.kv_heads, n, segment, s.values, p.segment());
    part_gradients<C, Q>(p, chunk, {queries.begin, own.begin}, segment, false, once, exact, s);
    part_gradients<C, Q>(p, chunk, own, segment, true, once, exact, s);
    part_gradients<C, Q>(p, chunk, {own.end, queries.end}, segment, false, once, exact, s);
  }
  for (int64_t t = own.begin; t < own.end; ++t) {
    for (int64_t j = 0; j < chunk.kv_heads; ++j) {
      const int64_t row = j * p.chunk() + t - own.begin;
      check += s.dkeys.store_to(p.element, row, scale, p.dk.at(chunk.b, t, chunk.kv_head + j));
      check += s.dvalues.store_to(p.element, row, C(1), p.dv.at(chunk.b, t, chunk.kv_head + j));
    }
    for (int64_t i = 0; i < chunk.kv_heads * p.group(); ++i) {
      check += s.dqueries.store_to(p.element, i * rows + t - own.begin, scale, p.dq.at(chunk.b, t, h + i));
    }
  }
  return check == 0;
}

SINMDM_KERNEL void clear_padding(const Backward& p, int64_t b, int64_t t, int64_t kv_head, int64_t kv_heads) {
  const int64_t bytes = p.dim * bytes_of(p.element);
  for (int64_t h = kv_head; h < kv_head + kv_heads; ++h) {
    std::memset(p.dk.at(b, t, h), 0, bytes);
    std::memset(p.dv.at(b, t, h), 0, bytes);
    for (int64_t i = 0; i < p.group(); ++i) std::memset(p.dq.at(b, t, h * p.group() + i), 0, bytes);
  }
}

template <typename C, int Q>
SINMDM_TARGET void backward_tasks(const Backward& p, int64_t begin, int64_t end) {
  constexpr int64_t W = Q * kLanes<C>;
  const int64_t kv_heads = p.task_kv_heads(), heads = kv_heads * p.group(), blocks = p.kv_heads / kv_heads;
  const int64_t keys = kv_heads * p.segment(), rows = heads * ((p.chunk() + W - 1) / W * W), columns = p.columns();
  const int64_t pairs = p.segment() * W, keeps = p.dropout_p > 0 ? pairs : 0;
  const int64_t sums = p.dbias == nullptr ? 0 : heads * (columns + W) * W;
  const auto panels = [&p](int64_t count) { return Scratch::bytes<C>(Panels<C>::size(count, p.dim)); };
  const int64_t own_keys = kv_heads * p.chunk(), lanes = heads * kBatch * W;
  Scratch scratch(2 * panels(keys) + 2 * panels(own_keys) + 2 * panels(lanes) + panels(1) + panels(rows) +
                  2 * Scratch::bytes<C>(p.dim * W) + 2 * Scratch::bytes<C>(lanes) + 2 * Scratch::bytes<C>(pairs) +
                  Scratch::bytes<C>(keeps) + Scratch::bytes<C>(sums) + Scratch::bytes<Strip>(kBatch));
  const auto take = [&](int64_t count) {
    return Panels<C>{scratch.take<C>(Panels<C>::size(count, p.dim)), count, p.dim};
  };
  BackwardBuffers<C> s;
  s.keys = take(keys), s.values = take(keys), s.dkeys = take(own_keys), s.dvalues = take(own_keys);
  s.query_rows = take(lanes), s.grad_rows = take(lanes), s.out_row = take(1), s.dqueries = take(rows);
  s.query_columns = scratch.take<C>(p.dim * W), s.grad_columns = scratch.take<C>(p.dim * W);
  s.delta = scratch.take<C>(lanes), s.score_base = scratch.take<C>(lanes);
  s.weights = scratch.take<C>(pairs), s.dscores = scratch.take<C>(pairs), s.keep = scratch.take<C>(keeps);
  s.dbias = p.dbias == nullptr ? nullptr : scratch.take<C>(sums);
  s.strips = scratch.take<Strip>(kBatch);

  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / blocks / p.parts(), part = task / blocks % p.parts(), n = p.length(b);
    const int64_t kv_head = task % blocks * kv_heads;
    if (s.dbias != nullptr) std::fill(s.dbias, s.dbias + sums, C(0));
    const int64_t last = std::min((part + 1) * p.task_frames(), p.frames);
    for (int64_t first = part * p.task_frames(); first < last; first += p.chunk()) {
      const Range frames{first, std::min(first + p.chunk(), last)};
      for (int64_t t = std::max(first, n); t < frames.end; ++t) clear_padding(p, b, t, kv_head, kv_heads);
      const Chunk chunk{b, kv_head, kv_heads, n, frames.clipped({0, n})};
      if (chunk.own.size() == 0) continue;
      if (!chunk_gradients<C, Q>(p, chunk, false, s)) chunk_gradients<C, Q>(p, chunk, true, s);
    }
    if (s.dbias == nullptr) continue;
    double* total = p.dbias + ((b * p.parts() + part) * p.heads + kv_head * p.group()) * columns;
    for (int64_t i = 0; i < heads; ++i) {
      for (int64_t column = 0; column < columns; ++column) {
        double sum = 0;
        for (int64_t lane = 0; lane < W; ++lane) sum += s.dbias[(i * (columns + W) + column + lane) * W + lane];
        total[i * columns + column] = sum;
      }
    }
  }
}

}  // namespace sinmdm::cpu::window::SINMDM_ISA
