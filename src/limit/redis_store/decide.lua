-- Decides and settles a batch of calls. Each call is all or nothing over its rules; calls follow one another.
--
-- KEYS     the hashes of the limit keys that the batch counts under, and perhaps the epoch key
-- ARGV[1]  MessagePack: {margin, fields, calls, epoch}
--   margin  microseconds that a hash outlives its last need
--   fields  for each of KEYS the names of the fields that the batch uses; they are numbered through: slots
--   calls   {operation, now, wall, rule, rule, ...}; now and wall are 0 for the server's own clock
--   epoch   the place in KEYS of the key that says since when the server has held its counts; 0 for none
--   rule    {kind, slot, a, b, c, parameters...}, where a, b, c are
--             of DECIDE and LOOK  units, 2 * units wanted beside them + 1 for a rule that never refuses,
--                                 {percent, units, percent, units, ...}
--             of SETTLE           period of the charge, units to give back, units to charge more
--             of GRANT            units to give back
--             of SEED             period, units that are known to have been used in it
--   parameters
--     BUCKET  ticks per microsecond, ticks per unit, burst
--     WINDOW  limit, cell in microseconds, cells, 1 for a smooth edge
--     LOG     limit, window in microseconds
--     QUOTA   limit, start of the period before, of this one, of the next, of the one after, 1 to answer MISSING
--             for a count that is not there although the epoch is younger than its period
--     GAUGE   limit, lease in microseconds, receipt (16 bytes)
--
-- Answers integers: the server's time in microseconds, then for each call a length and so many values: a status,
-- and for a decision that is ADMITTED or REFUSED each rule's `passed`, units charged, number of thresholds told,
-- their percentages, and its state.
--
-- A field holds `kind thresholds-told;state`; the field `x` when the hash may go. Time is in microseconds. Every
-- number is an integer of at most 2^53, so that doubles are exact; a product that could be larger is never formed.
-- Numbers become text by %.0f alone, because tostring and `..` keep 14 digits.

local LOOK, SETTLE, RENEW, RESET, GRANT, SEED = 2, 3, 4, 5, 6, 7
local ADMITTED, REFUSED, CORRUPT, CALENDAR, MISSING = 0, 1, 2, 3, 4
local BUCKET, WINDOW, LOG, QUOTA, GAUGE = 1, 2, 3, 4, 5
local TAGS = {'b', 'w', 'l', 'q', 'c'}
local MAX, HALF = 9007199254740992, 4503599627370496
local LOG_ENTRIES, LOG_BYTES, HOLD_BYTES = 10000, 14, 30
-- Of what is left, one process gets so much beside what its call takes.
local SHARE = 8

local floor, ceil, tonumber = math.floor, math.ceil, tonumber
local format, match, gmatch, find, sub = string.format, string.match, string.gmatch, string.find, string.sub
local pack_bytes, unpack_bytes = struct.pack, struct.unpack

local batch = cmsgpack.unpack(ARGV[1])
local margin, fields, calls = batch[1], batch[2], batch[3]
local clock = redis.call('TIME')
local time = clock[1] * 1000000 + clock[2]

-- Text of digits as a count; nil when it is none. One above 2^53 may be rounded to it.
local function count(text)
  local value = tonumber(text)
  if value and (value < MAX or text == '9007199254740992') then return value end
end

-- x * m / c as quotient and remainder; the quotient must be at most 2^53. The quotient of two integers up to 2^53
-- never rounds up to the next integer, so floor(a / b) is exact.
local function mul_div(x, m, c)
  if m == 0 or x <= HALF / m then
    local product = x * m
    local quotient = floor(product / c)
    return quotient, product - quotient * c
  end
  local whole = floor(m / c)
  local part = m - whole * c
  local quotient, remainder = 0, 0
  local bit = MAX
  while bit >= 1 do
    -- Doubled by comparing with what is left of c: the double itself could pass 2^53.
    quotient = quotient + quotient
    if remainder >= c - remainder then
      remainder = remainder - (c - remainder)
      quotient = quotient + 1
    else
      remainder = remainder + remainder
    end
    if x >= bit then
      x = x - bit
      quotient = quotient + whole
      if remainder >= c - part then
        remainder = remainder - (c - part)
        quotient = quotient + 1
      else
        remainder = remainder + part
      end
    end
    bit = bit / 2
  end
  return quotient, remainder
end

-- Since when the server has held its counts, in microseconds; for ever in the future when that is not known.
local epoch
local function held_since()
  if epoch then return epoch end
  epoch = MAX
  local key = KEYS[batch[4]]
  if key then
    local text = redis.pcall('GET', key)
    if type(text) == 'string' then epoch = match(text, '^%d+$') and count(text) or MAX end
    if text == false then
      -- Whatever was held before is gone.
      epoch = time
      redis.call('SET', key, format('%.0f', time))
    end
  end
  return epoch
end

-- Bringing a slot's state to now. Each function returns the state, nil for one that is corrupt, false when the
-- calendar's bounds do not fit or the count is missing. Until something is charged a state is only looked at, and not written.
local bring, passes, left, take, settle, write = {}, {}, {}, {}, {}, {}

-- The state's text after its kind and the thresholds told; '' where there is none yet, nil for a foreign value.
local function body_of(slot, kind)
  if slot.foreign then return nil end
  if not slot.text then
    slot.told = ''
    return ''
  end
  local tag, told, from = match(slot.text, '^(%l)([%d,]*);()')
  if tag ~= TAGS[kind] then return nil end
  slot.told = told
  slot.exists = true
  return sub(slot.text, from)
end

-- Token bucket: level = capacity - deficit in ticks, from -capacity (one burst of debt) to capacity.

local function read_bucket(slot, rule)
  local body = body_of(slot, BUCKET)
  if not body then return nil end
  if body == '' and not slot.exists then
    return {n = rule[6], p = rule[7], b = rule[8], level = rule[7] * rule[8], at = 0}
  end
  local n, p, b, sign, level, at = match(body, '^(%d+) (%d+) (%d+) (%-?)(%d+) (%d+)$')
  n, p, b, level, at = count(n), count(p), count(b), count(level), count(at)
  if not (n and p and b and at and level) or n < 1 or p < 1 or b < 1 or b > floor(MAX / p) then return nil end
  if level > p * b then return nil end
  if sign == '-' then level = -level end
  return {n = n, p = p, b = b, level = level, at = at}
end

local function refill(state, now)
  local elapsed, capacity = now - state.at, state.p * state.b
  if elapsed >= 0 then
    local level, step = state.level, floor(HALF / state.n)
    while elapsed > 0 and level < capacity do
      local part = elapsed < step and elapsed or step
      -- Above 2^53 the sum may be rounded, but not to below the capacity.
      level = level + part * state.n
      elapsed = elapsed - part
    end
    state.level = level < capacity and level or capacity
    state.at = now
  elseif -elapsed > capacity / state.n + 1 then
    -- The clock has gone back by more than a whole refill: the bucket fills from now on.
    state.at = now
    return true
  end
  return false
end

-- Keeps the level in proportion, rounded down, so that changing back and forth never refills.
local function rescale(state, n, p, b)
  if state.n == n and state.p == p and state.b == b then return false end
  local old, new = state.p * state.b, p * b
  if state.level >= 0 then
    state.level = mul_div(state.level, new, old)
  else
    local quotient, remainder = mul_div(-state.level, new, old)
    state.level = remainder > 0 and -quotient - 1 or -quotient
  end
  state.n, state.p, state.b = n, p, b
  return true
end

bring[BUCKET] = function(slot, rule, now)
  local state = slot.state
  if not state then
    state = read_bucket(slot, rule)
    if not state then return nil end
    slot.state = state
  end
  -- A state of other numbers, or of a clock that has gone back, is written even when nothing is charged.
  local is_back = refill(state, now)
  local is_other = rescale(state, rule[6], rule[7], rule[8])
  if slot.exists and (is_back or is_other) then slot.dirty = true end
  return state
end

passes[BUCKET] = function(state, rule, amount)
  return amount <= state.b and state.level >= amount * state.p
end

left[BUCKET] = function(state)
  return floor(state.level / state.p), state.b
end

-- Takes units, at most down to one burst of debt; says how many, and the units used before and after.
take[BUCKET] = function(state, rule, amount)
  local before = state.b - floor(state.level / state.p)
  local room = state.b + floor(state.level / state.p)
  if amount > room then
    amount = room
    state.level = -(state.p * state.b)
  else
    -- In two parts: the product alone could pass 2^53.
    local first = amount < state.b and amount or state.b
    state.level = state.level - first * state.p
    state.level = state.level - (amount - first) * state.p
  end
  return amount, before, state.b - floor(state.level / state.p)
end

local function give_to_bucket(state, units)
  local capacity = state.p * state.b
  local level = state.level
  -- From the deepest debt two bursts fill the bucket; never a product above 2^53.
  for _ = 1, 2 do
    local part = units < state.b and units or state.b
    level = level + part * state.p
    units = units - part
    if level >= capacity then level = capacity end
  end
  state.level = level
end

settle[BUCKET] = function(state, rule, period, back, more)
  if more > 0 then
    take[BUCKET](state, rule, more)
    return true
  end
  local capacity = state.p * state.b
  local refill_time = floor(capacity / state.n)
  if refill_time * state.n < capacity then refill_time = refill_time + 1 end
  -- What was charged a whole refill ago has come back by itself.
  if state.at - period >= refill_time then return false end
  give_to_bucket(state, back)
  return true
end

write[BUCKET] = function(slot, state)
  local need = (state.p * state.b - state.level) / state.n + (state.at - slot.now)
  return format('b%s;%.0f %.0f %.0f %.0f %.0f', slot.told, state.n, state.p, state.b, state.level, state.at), need
end

-- Sliding window: the number of the newest cell and the counts from it backwards.

local function read_window(slot, rule, now)
  local body = body_of(slot, WINDOW)
  if not body then return nil end
  if body == '' and not slot.exists then
    return {newest = floor(now / rule[7]), counts = {}, total = 0}
  end
  if not find(body, '^%d[ %d]*$') then return nil end
  local state = {counts = {}, total = 0}
  for text in gmatch(body, '%d+') do
    local value = count(text)
    if not value then return nil end
    if not state.newest then
      state.newest = value
    else
      state.counts[#state.counts + 1] = value
      state.total = state.total + value
    end
  end
  if #state.counts > rule[8] + 1 or state.total > MAX then return nil end
  return state
end

bring[WINDOW] = function(slot, rule, now)
  local state = slot.state
  if not state then
    state = read_window(slot, rule, now)
    if not state then return nil end
    slot.state = state
  end
  local index, cells = floor(now / rule[7]), rule[8]
  local steps = index - state.newest
  if steps > cells then
    state.counts, state.total = {}, 0
  elseif steps > 0 then
    local old, total = state.counts, 0
    state.counts = {}
    for place = 1, steps do state.counts[place] = 0 end
    for place = 1, #old do
      if place + steps <= cells + 1 then
        state.counts[place + steps] = old[place]
        total = total + old[place]
      end
    end
    state.total = total
  end
  -- A cell never turns back, unless the clock has gone back by more than the window.
  if steps > 0 then
    state.newest = index
  elseif -steps > cells + 1 then
    state.newest = index
    slot.dirty = slot.dirty or slot.exists
  end
  state.cell = rule[7]
  state.cells = cells
  return state
end

local function used_in_window(state, rule, now)
  if rule[9] == 0 or state.newest < rule[8] then return state.total end
  local oldest = state.counts[rule[8] + 1] or 0
  local elapsed = now - state.newest * rule[7]
  if elapsed < 0 then elapsed = 0 end
  if elapsed > rule[7] then elapsed = rule[7] end
  local weighed, remainder = mul_div(oldest, rule[7] - elapsed, rule[7])
  if remainder > 0 then weighed = weighed + 1 end
  return state.total - oldest + weighed
end

passes[WINDOW] = function(state, rule, amount, now)
  return rule[6] > 0 and amount <= rule[6] and used_in_window(state, rule, now) <= rule[6] - amount
end

left[WINDOW] = function(state, rule, now)
  return rule[6] - used_in_window(state, rule, now), rule[6]
end

take[WINDOW] = function(state, rule, amount, now)
  local before = used_in_window(state, rule, now)
  if amount > MAX - state.total then amount = MAX - state.total end
  state.counts[1] = (state.counts[1] or 0) + amount
  state.total = state.total + amount
  return amount, before, before + amount
end

settle[WINDOW] = function(state, rule, period, back, more)
  local place = state.newest - period + 1
  if place < 1 or place > rule[8] + 1 then return false end
  for gap = #state.counts + 1, place do state.counts[gap] = 0 end
  local units = state.counts[place]
  if back > units then back = units end
  if more > MAX - state.total then more = MAX - state.total end
  state.counts[place] = units - back + more
  state.total = state.total - back + more
  return back > 0 or more > 0
end

write[WINDOW] = function(slot, state)
  local last = #state.counts
  while last > 0 and state.counts[last] == 0 do last = last - 1 end
  local texts = {format('w%s;%.0f', slot.told, state.newest)}
  for place = 1, last do texts[place + 1] = format('%.0f', state.counts[place]) end
  return table.concat(texts, ' '), (state.newest + state.cells + 1) * state.cell - slot.now
end

-- Exact log: the units used, and a record of time and units for each instant, oldest first.

local function record(data, place)
  return unpack_bytes('>I7I7', data, (place - 1) * LOG_BYTES + 1)
end

local function read_log(slot)
  local body = body_of(slot, LOG)
  if not body then return nil end
  if body == '' and not slot.exists then return {used = 0, data = '', newest = 0} end
  if #body < 7 or (#body - 7) % LOG_BYTES ~= 0 then return nil end
  local used = unpack_bytes('>I7', body)
  if used > MAX then return nil end
  local state = {used = used, data = sub(body, 8), newest = 0}
  local n = #state.data / LOG_BYTES
  if n > 0 then state.newest = record(state.data, n) end
  if state.newest > MAX then return nil end
  return state
end

bring[LOG] = function(slot, rule, now)
  local state = slot.state
  if not state then
    state = read_log(slot)
    if not state then return nil end
    slot.state = state
  end
  if state.newest - now > rule[7] then
    -- The clock has gone back by more than the window: what was taken was taken now.
    state.data = state.used > 0 and pack_bytes('>I7I7', now, state.used) or ''
    state.newest = now
    slot.dirty = slot.dirty or slot.exists
  end
  state.now = now > state.newest and now or state.newest
  state.window = rule[7]
  local n, gone = #state.data / LOG_BYTES, 0
  while gone < n do
    local at, units = record(state.data, gone + 1)
    if state.now - at < rule[7] then break end
    gone = gone + 1
    state.used = state.used > units and state.used - units or 0
  end
  if gone > 0 then state.data = sub(state.data, gone * LOG_BYTES + 1) end
  if state.data == '' then state.used = 0 end
  return state
end

passes[LOG] = function(state, rule, amount)
  return rule[6] > 0 and amount <= rule[6] and state.used <= rule[6] - amount
end

take[LOG] = function(state, rule, amount)
  local before = state.used
  if amount > MAX - before then amount = MAX - before end
  if amount > 0 then
    local n = #state.data / LOG_BYTES
    local at, units
    if n > 0 then at, units = record(state.data, n) end
    if n > 0 and (at == state.now or n >= LOG_ENTRIES) then
      state.data = sub(state.data, 1, -LOG_BYTES - 1) .. pack_bytes('>I7I7', state.now, units + amount)
    else
      state.data = state.data .. pack_bytes('>I7I7', state.now, amount)
    end
    state.newest = state.now
    state.used = before + amount
  end
  return amount, before, state.used
end

settle[LOG] = function(state, rule, period, back, more)
  if state.now - period >= rule[7] then return false end
  local low, high = 1, #state.data / LOG_BYTES + 1
  while low < high do
    local middle = floor((low + high) / 2)
    if record(state.data, middle) < period then low = middle + 1 else high = middle end
  end
  local head, tail = sub(state.data, 1, (low - 1) * LOG_BYTES), sub(state.data, (low - 1) * LOG_BYTES + 1)
  local units = 0
  if tail ~= '' then
    local at, found = record(tail, 1)
    if at == period then units, tail = found, sub(tail, LOG_BYTES + 1) end
  end
  if back > units then back = units end
  if more > MAX - state.used then more = MAX - state.used end
  local kept = units - back + more
  state.data = head .. (kept > 0 and pack_bytes('>I7I7', period, kept) or '') .. tail
  if kept > 0 and period > state.newest then state.newest = period end
  state.used = state.used - back + more
  return back > 0 or more > 0
end

write[LOG] = function(slot, state)
  return format('l%s;', slot.told) .. pack_bytes('>I7', state.used) .. state.data,
    state.newest + state.window - slot.now
end

-- The time of the entry with which so many units have left the window; 0 for none.
local function entry_that_frees(state, units)
  local at, found = 0, nil
  for place = 1, #state.data / LOG_BYTES do
    if units <= 0 then break end
    at, found = record(state.data, place)
    units = units - found
  end
  return at
end

-- Calendar quota: the period's bounds, the start of the one before, and the units used.

local function read_quota(slot)
  local body = body_of(slot, QUOTA)
  if not body then return nil end
  if body == '' and not slot.exists then return {used = 0} end
  local from, to, earliest, used = match(body, '^(%d+) (%d+) (%d+) (%d+)$')
  from, to, earliest, used = count(from), count(to), count(earliest), count(used)
  if not (from and to and earliest and used) or from >= to or earliest > from then return nil end
  return {from = from, to = to, earliest = earliest, used = used}
end

-- Puts the state into the period around `wall`; false when it is in none of those that were sent.
local function turn(state, rule, wall)
  if rule[8] <= wall and wall < rule[9] then
    state.earliest, state.from, state.to = rule[7], rule[8], rule[9]
  elseif rule[9] <= wall and wall < rule[10] then
    state.earliest, state.from, state.to = rule[8], rule[9], rule[10]
  else
    return false
  end
  return true
end

bring[QUOTA] = function(slot, rule, _, wall)
  local state = slot.state
  if not state then
    state = read_quota(slot)
    if not state then return nil end
    slot.state = state
  end
  if not state.from then
    if not turn(state, rule, wall) then return false end
    if rule[11] == 1 and state.from < held_since() then
      slot.state, slot.is_missing = nil, true
      return false
    end
  elseif wall >= state.to then
    if not turn(state, rule, wall) then return false end
    state.used = 0
    slot.told = ''
    slot.dirty = slot.dirty or slot.exists
  elseif wall < state.earliest then
    -- The clock had jumped ahead and is back: what was used stays used.
    if not turn(state, rule, wall) then return false end
    slot.dirty = slot.dirty or slot.exists
  end
  return state
end

passes[QUOTA] = function(state, rule, amount)
  return rule[6] > 0 and amount <= rule[6] and state.used <= rule[6] - amount
end

left[QUOTA] = function(state, rule)
  return rule[6] - state.used, rule[6]
end

take[QUOTA] = function(state, rule, amount)
  local before = state.used
  if amount > MAX - before then amount = MAX - before end
  state.used = before + amount
  return amount, before, state.used
end

settle[QUOTA] = function(state, rule, period, back, more)
  if state.from ~= period then return false end
  if more > MAX - state.used then more = MAX - state.used end
  if back > state.used then back = state.used end
  state.used = state.used - back + more
  return back > 0 or more > 0
end

write[QUOTA] = function(slot, state)
  return format('q%s;%.0f %.0f %.0f %.0f', slot.told, state.from, state.to, state.earliest, state.used),
    state.to - slot.wall
end

-- Concurrency: the units in flight, and a record of expiry, units and receipt for each hold, first to expire first.
-- Leases run by the server's clock whatever the call's time.

local function read_gauge(slot)
  local body = body_of(slot, GAUGE)
  if not body then return nil end
  if body == '' and not slot.exists then return {used = 0, data = ''} end
  if #body < 7 or (#body - 7) % HOLD_BYTES ~= 0 then return nil end
  local used = unpack_bytes('>I7', body)
  if used > MAX then return nil end
  return {used = used, data = sub(body, 8)}
end

bring[GAUGE] = function(slot, rule)
  local state = slot.state
  if not state then
    state = read_gauge(slot)
    if not state then return nil end
    slot.state = state
  end
  local from = 1
  while from < #state.data do
    local expiry, units = unpack_bytes('>I7I7', state.data, from)
    if expiry > time then break end
    from = from + HOLD_BYTES
    state.used = state.used > units and state.used - units or 0
  end
  if from > 1 then state.data = sub(state.data, from) end
  if state.data == '' then state.used = 0 end
  return state
end

passes[GAUGE] = passes[LOG]

local function hold(state, receipt, units, expiry)
  local from = #state.data + 1
  while from > 1 and unpack_bytes('>I7', state.data, from - HOLD_BYTES) > expiry do from = from - HOLD_BYTES end
  state.data = sub(state.data, 1, from - 1) .. pack_bytes('>I7I7', expiry, units) .. receipt .. sub(state.data, from)
end

-- Takes a receipt's record out and returns its units; nil where it has lapsed or was released.
local function release(state, receipt)
  local from = 1
  while true do
    local found = find(state.data, receipt, from, true)
    if not found then return nil end
    if (found - 15) % HOLD_BYTES == 0 then
      local start = found - 14
      local _, units = unpack_bytes('>I7I7', state.data, start)
      state.data = sub(state.data, 1, start - 1) .. sub(state.data, start + HOLD_BYTES)
      return units
    end
    from = found + 1
  end
end

take[GAUGE] = function(state, rule, amount)
  local before = state.used
  if amount > MAX - before then amount = MAX - before end
  if amount > 0 then
    hold(state, rule[8], amount, time + rule[7])
    state.used = before + amount
  end
  return amount, before, state.used
end

settle[GAUGE] = function(state, rule, _, back)
  if back == 0 then return false end
  local units = release(state, rule[8])
  if not units then return false end
  state.used = state.used > units and state.used - units or 0
  return true
end

write[GAUGE] = function(slot, state)
  local need = 0
  if state.data ~= '' then need = unpack_bytes('>I7', state.data, #state.data - HOLD_BYTES + 1) - time end
  return format('c%s;', slot.told) .. pack_bytes('>I7', state.used) .. state.data, need
end

-- The thresholds that a charge is the first to reach in its period. Those of a quota are told again in the next
-- period, the others when the use has fallen below the lowest.
local function reach(slot, kind, thresholds, before, after)
  local reached = {}
  if #thresholds == 0 or after < thresholds[2] then return reached end
  if kind ~= QUOTA and before < thresholds[2] then slot.told = '' end
  for place = 1, #thresholds, 2 do
    local percent, units = thresholds[place], thresholds[place + 1]
    local mark = format(',%.0f,', percent)
    if after >= units and (kind == QUOTA or before < units) and not find(slot.told, mark, 1, true) then
      slot.told = slot.told == '' and mark or slot.told .. sub(mark, 2)
      reached[#reached + 1] = percent
    end
  end
  return reached
end

local slots = {}
for place = 1, #fields do
  local names = fields[place]
  local read = redis.pcall('HMGET', KEYS[place], 'x', unpack(names))
  local foreign = read.err ~= nil
  -- A foreign value harms the calls that count there; any other fault is the whole batch's, and nothing is charged.
  if foreign and sub(read.err, 1, 9) ~= 'WRONGTYPE' then return read end
  for number = 1, #names do
    slots[#slots + 1] = {
      key = place, name = names[number], text = read[number + 1], foreign = foreign, told = '',
      kept_until = not foreign and read[1] and match(read[1], '^%d+$') and count(read[1]) or 0,
    }
  end
end

local answer = {time}

-- Appends a rule's state as it is now.
local function tell(kind, state, rule, amount)
  local at = #answer
  if kind == BUCKET then
    answer[at + 1], answer[at + 2] = state.level, state.at
  elseif kind == WINDOW then
    answer[at + 1], answer[at + 2] = state.newest, #state.counts
    for place = 1, #state.counts do answer[at + 2 + place] = state.counts[place] end
  elseif kind == LOG then
    local left = rule[6] > state.used and rule[6] - state.used or 0
    answer[at + 1], answer[at + 2] = state.now, state.used
    answer[at + 3] = entry_that_frees(state, state.used + amount - rule[6])
    answer[at + 4] = entry_that_frees(state, state.used + left + 1 - rule[6])
  elseif kind == QUOTA then
    answer[at + 1], answer[at + 2], answer[at + 3] = state.from, state.to, state.used
  else
    answer[at + 1] = state.used
  end
end

-- The units that a process gets beside those of its call, to serve from: what it wants, at most its share of what
-- is left, and none that would reach a threshold, which a call has to reach.
local function slice(kind, state, rule, amount, now)
  local wanted = floor(rule[4] / 2)
  if wanted <= 0 or not left[kind] then return 0 end
  local free, limit = left[kind](state, rule, now)
  free = free - amount
  local share = floor(free / SHARE)
  if share < wanted then wanted = share end
  local used, thresholds = limit - free, rule[5]
  for place = 2, #thresholds, 2 do
    if thresholds[place] > used then
      if thresholds[place] - used - 1 < wanted then wanted = thresholds[place] - used - 1 end
      break
    end
  end
  return wanted > 0 and wanted or 0
end

local function decide(call, now, wall)
  local refused = call[1] == LOOK
  local passed = {}
  for place = 4, #call do
    local rule = call[place]
    local slot = slots[rule[2]]
    local state = bring[rule[1]](slot, rule, now, wall)
    if state == nil then return CORRUPT end
    if state == false then return slot.is_missing and MISSING or CALENDAR end
    slot.kind, slot.now, slot.wall = rule[1], now, wall
    passed[place] = passes[rule[1]](state, rule, rule[3], now)
    refused = refused or (rule[4] % 2 == 0 and not passed[place])
  end
  local from = #answer
  answer[from + 1] = refused and REFUSED or ADMITTED
  for place = 4, #call do
    local rule = call[place]
    local kind, slot, amount = rule[1], slots[rule[2]], rule[3]
    local state, charged, reached = slot.state, 0, nil
    if not refused then
      local before, after
      local taken = amount + slice(kind, state, rule, amount, now)
      charged, before, after = take[kind](state, rule, taken, now)
      -- A bucket at its deepest debt may have changed by less than a unit.
      if taken > 0 then slot.dirty = true end
      if charged > 0 then
        reached = reach(slot, kind, rule[5], before, after)
      end
    end
    local at = #answer
    answer[at + 1], answer[at + 2], answer[at + 3] = passed[place] and 1 or 0, charged, reached and #reached or 0
    for number = 1, reached and #reached or 0 do answer[at + 3 + number] = reached[number] end
    tell(kind, state, rule, amount)
  end
end

-- A settlement of a count that is gone begins a new one, unless it is a period that is over.
local function state_for_settlement(operation, slot, rule, now, wall)
  if rule[1] ~= QUOTA then return bring[rule[1]](slot, rule, now, wall) end
  local state = slot.state or read_quota(slot)
  if not state then return nil end
  if not state.from then
    if not turn(state, rule, wall) then return false end
    -- A lost count begins with its totals, which know of this charge too.
    if rule[11] == 1 and operation ~= SEED and state.from < held_since() then return false end
  end
  slot.state = state
  return state
end

local function change(call, now, wall)
  local status = ADMITTED
  for place = 4, #call do
    local rule = call[place]
    local kind, slot = rule[1], slots[rule[2]]
    if call[1] == RESET then
      slot.dropped, slot.dirty, slot.state, slot.text, slot.exists = true, false, nil, nil, false
    else
      local state = state_for_settlement(call[1], slot, rule, now, wall)
      if state == nil then
        status = CORRUPT
      elseif state ~= false then
        slot.kind, slot.now, slot.wall = kind, now, wall
        if call[1] == RENEW then
          local units = release(state, rule[8])
          if units then
            hold(state, rule[8], units, time + rule[7])
            slot.dirty = true
          end
        elseif call[1] == SETTLE then
          if settle[kind](state, rule, rule[3], rule[4], rule[5]) then slot.dirty = true end
        elseif call[1] == SEED then
          if state.from == rule[3] then
            if state.used < rule[4] then state.used = rule[4] end
            slot.dirty, slot.is_missing = true, false
          end
        elseif kind == BUCKET then
          give_to_bucket(state, rule[3])
          slot.dirty = true
        elseif kind == QUOTA then
          state.used = state.used > rule[3] and state.used - rule[3] or 0
          slot.dirty = true
        end
      end
    end
  end
  return status
end

for number = 1, #calls do
  local call = calls[number]
  local now = call[2] > 0 and call[2] or time
  local wall = call[3] > 0 and call[3] or time
  local from = #answer + 1
  answer[from] = 1
  local status
  if call[1] <= LOOK then status = decide(call, now, wall) else status = change(call, now, wall) end
  if status then answer[from + 1] = status end
  answer[from] = #answer - from
end

-- Everything is read and decided; from here on only writes, of which the first fails if any does.
local place = 1
while place <= #slots do
  local key = slots[place].key
  local values, kept_until = {}, slots[place].kept_until
  while place <= #slots and slots[place].key == key do
    local slot = slots[place]
    if slot.dropped and slot.foreign then
      redis.call('DEL', KEYS[key])
    elseif slot.dropped then
      redis.call('HDEL', KEYS[key], slot.name)
    end
    if slot.dirty and slot.state then
      local text, need = write[slot.kind](slot, slot.state)
      values[#values + 1] = slot.name
      values[#values + 1] = text
      local until_then = time + ceil(need > 0 and need or 0) + margin
      if until_then > kept_until then kept_until = until_then end
    end
    place = place + 1
  end
  if #values > 0 then
    if kept_until > MAX then kept_until = MAX end
    values[#values + 1] = 'x'
    values[#values + 1] = format('%.0f', kept_until)
    redis.call('HSET', KEYS[key], unpack(values))
    redis.call('PEXPIRE', KEYS[key], format('%.0f', ceil((kept_until - time) / 1000)))
  end
end

return answer
