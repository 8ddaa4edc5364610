"""The Lua scripts of the Redis store: each change is one script, and so atomic.

Keys begin with `session_server:`, those of a user with `session_server@<name>:`

    session:<id>     a hash: times, settings, state; `token`, the fence of the caller that has locked the session;
                     `published`, the fence of the newest turn that was recorded (`told` by earlier versions);
                     `replaced` where a question has replaced messages; `asked` and `kept`, the fence of a turn that
                     another process wants to end, or to run on; `left`, that of one that nobody reads any more
    messages:<id>    a list: each message as JSON
    files:<id>       a set: the SHA-256 of the pictures and files that the session's messages name
    file:<sha256>    the bytes of one, once for all sessions
    holders:<sha256> a sorted set: the sessions that have it, `inf` where a message names it, else until when it is
                     kept for one that is on its way, in milliseconds by Redis' clock
    sessions         a sorted set: the ids, in the order of the list
    lease:<id>       who has locked the session; it expires unless it is renewed
    events:<fence>   a stream: what a turn has published, until a minute after its end; where the turn's process is
                     gone, until somebody has stored what it has left. An entry's id is the number of its first line.
                     The last one has the field `last`, and `substitute` where another process has added it
    readers:<fence>  a sorted set: the other processes whose clients read the turn, and until when that holds, in
                     milliseconds by Redis' clock

A caller that locks a session writes a fence of its own into the hash, and each later change compares it. A caller
whose lease has run out, and whose session another one has locked, can change nothing any more, whatever its clock
says.
"""

from session_core.stores.redis_queue_scripts import QUEUE_BODIES, QUEUE_NAMES

LEASE_MILLISECONDS = 5000  # after which a lock for a turn is free whose process does not renew it
SHORT_LEASE_MILLISECONDS = 2000  # the same for a short lock, which is not renewed
READER_MILLISECONDS = 5000  # for which another process reads a turn that does not say so again
KEEP_MILLISECONDS = 60_000  # for which a turn's events are kept after its end
DELETED_MILLISECONDS = 5000  # the same after the session's deletion, so that who watches gets its end
FILE_MILLISECONDS = 3_600_000  # for which a file is kept that no message names
DURABLE = ("create", "write", "delete", "queue", "unqueue", "keep_file")  # scripts that wait for replicas

# All scripts begin with this. A session exists if its hash does.
_NAMES = """
local session, messages, lease, list = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local prefix = string.match(session, '^[^:]*:')
local events = prefix .. 'events:'
local function published()
    for _, name in ipairs({'told', 'published'}) do  -- what earlier versions write is the newer one where it is there
        local found = redis.pcall('HGET', session, name)
        if type(found) == 'string' then return found end
    end
end
local function touch(id)
    local time = redis.call('TIME')
    local now = time[1] * 1000000 + time[2]
    local newest = redis.call('ZRANGE', list, 0, 0, 'WITHSCORES')[2]
    if newest and now <= -newest then now = 1 - newest end
    redis.call('ZADD', list, string.format('%.0f', -now), id)
end
local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function hold(id, line)  -- what a message names that is stored with this line
    for name in string.gmatch(line, '"sha256":"(%x+)"') do
        if redis.call('EXISTS', prefix .. 'file:' .. name) == 1 then
            redis.call('ZADD', prefix .. 'holders:' .. name, 'inf', id)
            redis.call('PERSIST', prefix .. 'file:' .. name)
            redis.call('PERSIST', prefix .. 'holders:' .. name)
            redis.call('SADD', prefix .. 'files:' .. id, name)
        end
    end
end
local function top(key)
    local entry = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
    if not entry then return end
    local _, ends = string.gsub(entry[2][2], '\\n', '')
    return tonumber(string.match(entry[1], '%d+')), entry[2][3], ends + 1, entry[2][5]
end
"""

_BODIES = {
    "create": """
local id, count = unpack(ARGV, 1, 2)
if redis.call('HEXISTS', session, 'created_at') == 1 then return 'exists' end
redis.call('HSET', session, unpack(ARGV, 3, 2 + count))
redis.call('UNLINK', queue)
for line = 3 + count, #ARGV do
    redis.call('RPUSH', messages, ARGV[line])
    hold(id, ARGV[line])
end
touch(id)
""",
    "read": """
local first, last = unpack(ARGV)
if redis.call('EXISTS', session) == 0 then return 'missing' end
local fields = redis.call('HMGET', session, unpack(ARGV, 3))
return {fields, redis.call('LRANGE', messages, first, last), redis.call('LLEN', messages)}
""",
    "page": """
local after, limit = unpack(ARGV)
local first = 0
if after ~= '' then
    first = redis.call('ZRANK', list, after)
    if not first then return 'missing' end
    first = first + 1
end
return redis.call('ZRANGE', list, first, limit == '' and -1 or first + limit)
""",
    # What the session itself must be asked for is false: where a turn has published what it may have left.
    "contents": """
local found, size = {}, 0
for number = 2, #ARGV do
    local fields = redis.pcall('HMGET', prefix .. 'session:' .. ARGV[number], 'title', 'published', 'told')
    local lines = redis.pcall('LRANGE', prefix .. 'messages:' .. ARGV[number], 0, -1)
    local text, newest = false, fields[3] or fields[2]
    if not (fields.err or lines.err or newest and redis.call('EXISTS', events .. newest) == 1) then
        table.insert(lines, 1, fields[1] or 'null')
        text = table.concat(lines, ',')
        size = size + #text
    end
    found[number - 1] = text
    if size > tonumber(ARGV[1]) then break end
end
return found
""",
    "older": """
local before, skip, limit = unpack(ARGV)
return redis.call('ZRANGE', list, '+inf', '-' .. before, 'BYSCORE', 'REV', 'LIMIT', skip, limit)
""",
    "newer": """
return redis.call('ZRANGE', list, '-inf', '-' .. ARGV[1], 'BYSCORE')
""",
    "score": """
if redis.call('EXISTS', session) == 0 then return 'missing' end
return redis.call('ZSCORE', list, ARGV[1])
""",
    # The first command needs no memory, so that Redis does not refuse the script where memory is short, and sessions
    # can be deleted then.
    "lock": """
local fence, holder, milliseconds = unpack(ARGV)
if redis.call('EXISTS', session) == 0 then return 'missing' end
local other = redis.call('GET', lease)
if other and other ~= holder then return 'locked' end
redis.call('HDEL', session, 'asked', 'kept', 'left', 'written')
redis.call('HSET', session, 'token', fence)
redis.call('SET', lease, holder, 'PX', milliseconds)
""",
    "holder": """
if redis.call('EXISTS', session) == 0 then return 'missing' end
local newest = published()
if not newest or redis.call('EXISTS', events .. newest) == 0 then newest = false end
return {redis.call('GET', lease), newest}
""",
    # Earlier versions write `note` and `continuation`, which are true where one has written last.
    # Changes are numbered, so that one that arrives twice, or after the next one, does nothing. `count` is how many
    # messages there should be. More are the rest of a try that was reported as failed.
    "write": """
local fence, number, count, lines, id, taken = unpack(ARGV, 1, 6)
if redis.call('HGET', session, 'token') ~= fence then
    return redis.call('EXISTS', session) == 1 and 'lost' or 'vanished'
end
if tonumber(number) <= tonumber(redis.call('HGET', session, 'written') or 0) then return end
local place, entry
if taken ~= '' then
    place, entry = queued(taken)
    if not place then return 'taken' end
end
if lines ~= '' then
    local found = redis.call('LLEN', messages)
    if found > tonumber(count) then redis.call('LTRIM', messages, -found, count - found - 1) end
    for line in string.gmatch(lines, '[^\\n]+') do redis.call('RPUSH', messages, line) end
    hold(id, lines)
end
redis.call('HDEL', session, 'note', 'continuation')
redis.call('HSET', session, 'written', number, unpack(ARGV, 7))
if place then unqueue(entry) end  -- behind what needs memory, so that a full Redis refuses all of it
if id ~= '' then touch(id) end
""",
    "delete": f"""
local fence, id = unpack(ARGV)
if redis.call('EXISTS', session) == 1 and redis.call('HGET', session, 'token') ~= fence then return 'lost' end
local newest = published()
if newest then
    local _, over = top(events .. newest)
    if over then redis.call('PEXPIRE', events .. newest, {DELETED_MILLISECONDS})
    else redis.call('UNLINK', events .. newest) end
end
for _, name in ipairs(redis.call('SMEMBERS', prefix .. 'files:' .. id)) do
    local file, holders = prefix .. 'file:' .. name, prefix .. 'holders:' .. name
    redis.call('ZREM', holders, id)
    redis.call('ZREMRANGEBYSCORE', holders, '-inf', now())
    if redis.call('ZCARD', holders) == 0 then
        redis.call('UNLINK', file, holders)
    elseif redis.call('ZCOUNT', holders, 'inf', 'inf') == 0 then
        redis.call('PEXPIRE', file, {FILE_MILLISECONDS})
        redis.call('PEXPIRE', holders, {FILE_MILLISECONDS})
    end
end
redis.call('SREM', queues, id)
redis.call('UNLINK', session, messages, queue, prefix .. 'files:' .. id)
redis.call('ZREM', list, id)
""",
    # Without data, a file that another session has. Nothing names it yet for this one.
    "keep_file": f"""
local id, name, data = unpack(ARGV)
local file, holders = prefix .. 'file:' .. name, prefix .. 'holders:' .. name
if redis.call('EXISTS', file) == 0 then
    if data == '' then return end
    redis.call('SET', file, data, 'PX', {FILE_MILLISECONDS})
end
if redis.call('ZSCORE', holders, id) ~= 'inf' then
    redis.call('ZADD', holders, now() + {FILE_MILLISECONDS}, id)
end
if redis.call('PTTL', file) > 0 then
    redis.call('PEXPIRE', file, {FILE_MILLISECONDS})
    redis.call('PEXPIRE', holders, {FILE_MILLISECONDS})
end
""",
    "file": """
local id, name = unpack(ARGV)
if redis.call('ZSCORE', prefix .. 'holders:' .. name, id) then return redis.call('GET', prefix .. 'file:' .. name) end
""",
    "release": f"""
local fence, holder, count = unpack(ARGV)
if redis.call('GET', lease) == holder then redis.call('DEL', lease) end
redis.call('PEXPIRE', events .. fence, {KEEP_MILLISECONDS})
if redis.call('HGET', session, 'token') == fence then
    local found = redis.call('LLEN', messages)
    if count ~= '' and found > tonumber(count) then redis.call('LTRIM', messages, -found, count - found - 1) end
    redis.call('HDEL', session, 'token')
end
""",
    "publish_first": f"""
local fence, line = unpack(ARGV)
local before = published()
if redis.call('HGET', session, 'token') ~= fence then return 'lost' end
if before == fence then return end
redis.call('XADD', events .. fence, '1-0', 'lines', line)
redis.call('HSET', session, 'published', fence)
redis.call('HDEL', session, 'told')
if before then redis.call('PEXPIRE', events .. before, {LEASE_MILLISECONDS}) end
""",
    # For each turn of a process: adds to its stream what it has published, checks that it still has its session, and
    # renews its lease. An entry's id is the number of its first line, so that one that is sent again does nothing.
    "publish": f"""
local replies = {{}}
for turn = 0, #ARGV / 5 - 1 do
    session, lease = KEYS[2 * turn + 1], KEYS[2 * turn + 2]
    local fence, held, first, lines, last = unpack(ARGV, 5 * turn + 1, 5 * turn + 5)
    local reply, stream = 'ok', string.match(session, '^[^:]*:') .. 'events:' .. fence
    local owner = redis.pcall('HMGET', session, 'token', 'asked')
    if owner.err then owner = {{}} end
    if lines ~= '' then
        local newest, over, _, substitute = top(stream)
        if not newest then
            reply = 'gone'
        elseif over and (substitute or newest ~= tonumber(first)) then
            reply = 'over'
        elseif newest < tonumber(first) then
            local fields = {{'lines', lines}}
            if last == '1' then fields = {{'lines', lines, 'last', '1'}} end
            if redis.pcall('XADD', stream, first .. '-0', unpack(fields)).err then reply = 'again' end
        end
    end
    if last == '1' then redis.call('PEXPIRE', stream, {KEEP_MILLISECONDS}) end
    if held == '1' and owner[1] ~= fence then
        reply = redis.call('EXISTS', session) == 1 and 'lost' or 'vanished'
    elseif held == '1' then
        local left = redis.call('PTTL', lease)
        if left < 0 then
            redis.pcall('SET', lease, 'turn ' .. fence, 'PX', {LEASE_MILLISECONDS})
        elseif left < {LEASE_MILLISECONDS} * 0.7 then
            redis.call('PEXPIRE', lease, {LEASE_MILLISECONDS})
        end
        if owner[2] == fence and reply == 'ok' then reply = 'asked' end
    end
    replies[turn + 1] = reply
end
return replies
""",
    # Once a caller has been told that a turn is dead, the turn stores nothing more.
    "state": """
local fence = unpack(ARGV)
if redis.call('EXISTS', events .. fence) == 0 then return 'gone' end
if redis.call('GET', lease) == 'turn ' .. fence then return 'held' end
if redis.call('HGET', session, 'token') ~= fence then return 'left' end
redis.call('HDEL', session, 'token')
return 'dead'
""",
    # `first` is the number that the first of the lines gets, if those before were all read.
    "end": f"""
local fence, first, lines = unpack(ARGV)
local newest, over, count = top(events .. fence)
if newest and not over and newest + count == tonumber(first) then
    redis.call('XADD', events .. fence, first .. '-0', 'lines', lines, 'last', '1', 'substitute', '1')
    redis.call('PEXPIRE', events .. fence, {KEEP_MILLISECONDS})
end
""",
    # Notes what another process says of its readers, and returns whether the turn is being ended. Without `reader`,
    # returns whether there are readers, and where there are none, notes that the turn's process ends it.
    "readers": f"""
local fence, reader, reading, kept = unpack(ARGV)
local readers, time = prefix .. 'readers:' .. fence, redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local owner = redis.call('HMGET', session, 'token', 'asked', 'kept', 'left')
if reader then
    redis.call('ZADD', readers, now + reading * {READER_MILLISECONDS}, reader)
    redis.call('PEXPIRE', readers, {READER_MILLISECONDS})
    if kept == '1' and owner[1] == fence then redis.call('HSET', session, 'kept', fence) end
    return (owner[2] == fence or owner[4] == fence) and 1 or 0
end
if owner[3] == fence or redis.call('ZCOUNT', readers, '(' .. now, '+inf') > 0 then return 1 end
if owner[1] == fence then redis.call('HSET', session, 'left', fence) end
return 0
""",
    "ask": """
local fence = unpack(ARGV)
if redis.call('HGET', session, 'token') == fence then redis.call('HSET', session, 'asked', fence) end
""",
}

SCRIPTS = {name: _NAMES + QUEUE_NAMES + body for name, body in {**_BODIES, **QUEUE_BODIES}.items()}
