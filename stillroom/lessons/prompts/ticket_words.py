"""The word lists of the quickstart's customer messages (see tickets.py for the grammar).

`{it}` is where a request names what it is about. Cues are pairs: what the customer writes, and how the
teacher's thought sums it up.
"""


def _words(text: str) -> list[str]:
    return text.split()


QUALIFIERS = _words(
    """
    amber blue crimson golden green indigo ivory lilac maroon navy olive orange purple scarlet silver
    turquoise violet white yellow bamboo canvas ceramic copper cotton glass leather linen marble oak
    rattan rubber velvet walnut wicker woollen enamel folding portable striped vintage
    """
)

NOUNS = _words(
    """
    armchair backpack basket bench blender blanket bookcase bowl bracelet bucket cabinet candle
    curtain cushion desk drawer fan hammock heater jacket kettle keyboard ladder lamp
    lantern mirror necklace pillow printer radio saddle scarf shelf slippers
    sofa speaker suitcase teapot tent toaster umbrella vase wallet wardrobe
    """
)

NAMES = _words(
    """
    Aisha Anna Ben Carlos Chloé Daniel Elif Fiona George Hana Ivan José Kate Liam Mei Nina Omar Priya Zoë
    """
)
CITIES = _words(
    """
    Bath Berlin Bristol Cardiff Dublin Exeter Glasgow Leeds Lisbon London Lyon Oslo Oxford York
    """
)
MONTHS = _words("January February March April May June July August September October November December")
LETTERS = "ABCDEFGHKLMNPRSTW"

REQUESTS: dict[str, list[str]] = {
    "refund": [
        "I would like my money back for {it}",
        "please refund {it}",
        "can I return {it} and be paid back",
        "{it} is not what I expected and I want a refund",
        "how do I get a refund for {it}",
        "please put the money for {it} back on my card",
        "I am sending {it} back and want the full price returned",
    ],
    "exchange": [
        "can I swap {it} for another size",
        "please exchange {it} for a different colour",
        "{it} is too small, can you send me a bigger one",
        "I picked the wrong size, so please change {it} for a larger one",
        "may I trade {it} for another model",
        "I want to keep the deal but get {it} in another colour",
    ],
    "delivery": [
        "where is {it}",
        "{it} has not arrived yet",
        "when will {it} be delivered",
        "the tracking page for {it} has not moved for days",
        "I am still waiting for {it}",
        "has {it} been posted",
        "the courier never came with {it}",
    ],
    "cancel": [
        "please cancel {it}",
        "I no longer want {it}, so do not send it",
        "stop {it} before it leaves your warehouse",
        "I changed my mind about {it}, please call it off",
        "I bought {it} by mistake, do not ship it",
    ],
    "damaged": [
        "{it} arrived broken",
        "{it} came with a big crack",
        "there is a dent in {it}",
        "{it} stopped working after a day",
        "I opened the box and {it} was in pieces",
        "{it} was scratched all over when I unpacked it",
    ],
    "invoice": [
        "I need an invoice for {it}",
        "please send me the receipt for {it}",
        "could you email the bill for {it}",
        "our finance team wants the tax document for {it}",
        "I cannot find the invoice for {it}",
    ],
    "address": [
        "please send {it} to a new address",
        "I have moved, so {it} should go to {city} instead",
        "the address for {it} is wrong",
        "can you deliver {it} to my office in {city}",
        "the street on the label of {it} must be changed",
    ],
}

# What to say of an intent in the thought. The wordings differ on purpose: a real teacher's do.
REASONS: dict[str, list[str]] = {
    "refund": ["wants money back", "asks to be paid back"],
    "exchange": ["wants a swap", "wants another one instead"],
    "delivery": ["asks where it is", "has not got it yet"],
    "cancel": ["does not want it sent", "calls it off"],
    "damaged": ["it is broken", "came faulty"],
    "invoice": ["needs the paper", "wants the bill"],
    "address": ["send it elsewhere", "new address"],
    "other": ["not about an order", "nothing to do with us"],
}

# Said before a request of another intent, so that a single word does not give the intent away.
DENIALS: dict[str, list[str]] = {
    "refund": ["I do not want a refund", "you can keep the money"],
    "exchange": ["I do not need an exchange", "another size would not help"],
    "delivery": ["the delivery was quick", "it is not about the tracking"],
    "cancel": ["I do not want to cancel anything"],
    "damaged": ["nothing is broken", "it arrived in one piece"],
    "invoice": ["I already have the invoice"],
    "address": ["my address is still the same"],
}

OUT_OF_SCOPE = [
    "do you have a good recipe for {food}",
    "what is the weather like in {city}",
    "are you hiring in {city}",
    "can you help my son with his homework",
    "who won the match in {city}",
    "do you know a good dentist in {city}",
    "write me a poem about a {product}",
    "which museum should we visit in {city}",
    "how long should I boil {food}",
    "what is the best way to clean a {product}",
    "I applied for a job at your shop, reference {number}",
    "what would a {product} look like in a painting",
    "can you translate a letter into Spanish for me",
]
FOODS = ["pancakes", "lentils", "dumplings", "noodles", "rhubarb", "potatoes", "mushrooms"]

# How pressing a message is follows from what it says, in points that add up: an occasion and its time, or a remark.
# (what the customer writes, what the thought calls it, points)
OCCASIONS = [
    ("the funeral is {when}", "funeral", 2),
    ("the inspection is {when}", "inspection", 2),
    ("my exam is {when}", "exam", 2),
    ("the wedding is {when}", "wedding", 1),
    ("we fly {when}", "flight", 1),
    ("my job interview is {when}", "interview", 1),
    ("the shop opens {when}", "opening", 1),
    ("my guests arrive {when}", "guests", 1),
    ("it is for a birthday {when}", "birthday", 1),
    ("we move house {when}", "house move", 0),
    ("the concert is {when}", "concert", 0),
    ("the school play is {when}", "school play", 0),
    ("my holidays begin {when}", "holidays", 0),
    ("we have a picnic {when}", "picnic", -1),
    ("my book club meets {when}", "book club", -1),
    ("the garden party is {when}", "garden party", -1),
    ("my neighbour looks in {when}", "neighbour", -2),
    ("I tidy the attic {when}", "attic", -2),
]
TIMES = {
    "tonight": 2,
    "tomorrow": 2,
    "in two days": 1,
    "on Saturday": 1,
    "this week": 1,
    "next week": 0,
    "at the end of the month": 0,
    "next month": -1,
    "in the autumn": -2,
    "next summer": -2,
    "next year": -2,
}
REMARKS = [
    ("this is an emergency", "emergency", 3),
    ("it cannot wait another hour", "cannot wait", 3),
    ("my mother is ill and depends on it", "mother ill", 3),
    ("this is urgent", "urgent", 2),
    ("please hurry", "hurry", 2),
    ("I lose money every day", "losing money", 2),
    ("I cannot work without it", "needed for work", 2),
    ("this is the third time I write", "third letter", 2),
    ("I am running out of time", "out of time", 2),
    ("I am furious", "furious", 2),
    ("I would like this solved soon", "soon", 1),
    ("it is a present", "present", 1),
    ("I use it every day", "daily use", 1),
    ("this is the second time I write", "second letter", 1),
    ("I am losing patience", "impatient", 1),
    ("I am a bit worried", "worried", 1),
    ("a quick answer would be nice", "quick answer", 1),
    ("thank you for the quick answer last time", "old thanks", 0),
    ("I hope you can help", "hope", 0),
    ("I have been a customer for years", "old customer", 0),
    ("your shop was in a hurry that day", "their hurry", 0),
    ("the colour is lovely by the way", "praise", 0),
    ("I bought it the day before a wedding", "old wedding", 0),
    ("I still have another one", "has another", -1),
    ("I hardly ever use it", "hardly used", -1),
    ("it is only for show", "for show", -1),
    ("it does not bother me much", "not bothered", -1),
    ("I am in no great hurry", "no great hurry", -1),
    ("there is no rush", "no rush", -2),
    ("whenever you have time", "any time", -2),
    ("it can wait", "can wait", -2),
    ("take your time", "take your time", -2),
    ("I only ask out of curiosity", "curious", -2),
    ("it is not urgent at all", "not urgent", -3),
    ("I do not mind if it takes months", "months", -3),
    ("answer when nothing else is left to do", "last in line", -3),
]
HIGH, LOW = 2.5, -1.5  # above the one and below the other
UNSAID = ["no time given", "nothing on time"]

GREETINGS = [
    "hello",
    "hi",
    "dear team",
    "good morning",
    "hi there",
    "hey",
    "good evening",
    "to whom it may concern",
]
THANKS = ["thanks", "thank you", "best wishes", "cheers", "kind regards", "many thanks"]
ASIDES = [
    "I paid {price} for it",
    "I bought it on {day} {month}",
    "you can call me on {phone}",
    "my customer number is {number}",
    "I live in {city}",
    "my husband {name} chose it",
    "I wrote to {name} on {day} {month} already",
    "my last bill was {price}",
]
FINE = ["is fine", "is great", "works well", "came on time", "can stay as it is", "is no problem"]
ORDER_FORMS = ["order {o}", "order number {o}", "order no. {o}", "#{o}", "ref {o}", "order #{o}"]
PARCELS = ["my order", "my parcel", "what I ordered", "my purchase"]
